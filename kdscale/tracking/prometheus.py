"""What workers tell Prometheus, through Ray's exporter. The only import of ray.util.metrics.

Ray collects the metrics of all processes of a node and serves them at one port of that node; their
names get the prefix `ray_`, and counters the suffix `_total`. A process that is no worker of a
stage (a benchmark, a test, a script) never binds, and all calls do nothing there.
"""

from typing import Any, Literal

Kind = Literal["Gauge", "Counter"]

METRICS: dict[str, tuple[Kind, str]] = {
    "kdscale_done": ("Gauge", "Steps, rows or domains that are done."),
    "kdscale_planned": ("Gauge", "Steps, rows or domains that there are."),
    "kdscale_tokens": ("Counter", "Tokens that this attempt has processed, of all ranks."),
    "kdscale_tokens_per_second": ("Gauge", "Tokens a second over all ranks."),
    "kdscale_loss": ("Gauge", "Training loss, nats a token."),
    "kdscale_kl": ("Gauge", "KL divergence from the teacher, nats a token."),
    "kdscale_validation_loss": ("Gauge", "Validation loss, nats a token."),
    "kdscale_learning_rate": ("Gauge", "Learning rate of the last logged step."),
    "kdscale_gradient_norm": ("Gauge", "Norm of the gradient before clipping."),
    "kdscale_data_wait_share": ("Gauge", "Share of the time that a step waits for its batch."),
    "kdscale_cache_hit_share": ("Gauge", "Share of chunks that memory or the local disk had."),
    "kdscale_memory_gib": ("Gauge", "Most memory held so far, GiB."),
    "kdscale_shards_committed": ("Counter", "Shards that this rank committed."),
    "kdscale_bytes_committed": ("Counter", "Bytes of these shards."),
    "kdscale_queue_wait_seconds": ("Counter", "Seconds that the teacher waited for a full queue."),
    "kdscale_attempt": ("Gauge", "Starts of the worker group before the present one."),
    "kdscale_working": ("Gauge", "1 while the rank is at its stage, then 0."),
}
"""Name: what it is, and its meaning. docs/observability.md lists the same."""

LOGGED = {
    "tokens_per_second": "kdscale_tokens_per_second",
    "train/loss": "kdscale_loss",
    "train/kl": "kdscale_kl",
    "validation/loss": "kdscale_validation_loss",
    "lr": "kdscale_learning_rate",
    "train/gradient_norm": "kdscale_gradient_norm",
    "data_wait_share": "kdscale_data_wait_share",
    "cache_hit_share": "kdscale_cache_hit_share",
    "memory_gib": "kdscale_memory_gib",
}
"""Of what a tracker logs: the name in its lines, and here."""

_TAGS = ("run", "stage", "rank", "part")

_tags: dict[str, str] | None = None
_made: dict[str, Any] = {}
_counted: dict[str, float] = {}


def bind(run: str, stage: str, rank: int, attempt: int) -> None:
    """From here on this process is `rank` of the worker group of a stage."""
    global _tags
    _tags = {"run": run, "stage": stage, "rank": str(rank), "part": ""}
    _counted.clear()
    gauge("kdscale_attempt", attempt)
    gauge("kdscale_working", 1)


def release() -> None:
    """This process has left its stage. What it told of it stands until the process ends."""
    global _tags
    if _tags is not None:
        _tags["part"] = ""
        gauge("kdscale_working", 0)
        _tags = None


def gauge(name: str, value: float) -> None:
    """Set a gauge of METRICS."""
    if _tags is not None:
        _metric(name).set(value, tags=_tags)


def count(name: str, amount: float) -> None:
    """Add to a counter of METRICS."""
    if _tags is not None and amount > 0:
        _metric(name).inc(amount, tags=_tags)


def count_to(name: str, total: float) -> None:
    """Bring a counter of METRICS, which this process alone counts, to `total`."""
    count(name, total - _counted.get(name, 0.0))
    _counted[name] = total


def progress(part: str, done: int, planned: int, tokens: int) -> None:
    """How far the stage is with `part` of it: the student or the baseline, or a domain. The first
    call for a part says where this attempt begins, so that no token is counted again after it."""
    if _tags is None:
        return
    _tags["part"] = part
    gauge("kdscale_done", done)
    gauge("kdscale_planned", planned)
    count("kdscale_tokens", tokens - _counted.get(part, tokens))
    _counted[part] = tokens


def logged(values: dict[str, float]) -> None:
    """What a tracker has logged."""
    for name in LOGGED.keys() & values.keys():
        gauge(LOGGED[name], values[name])


def _metric(name: str) -> Any:
    """The metric of that name, made when it is first used."""
    if name not in _made:
        from ray.util import metrics

        kind, meaning = METRICS[name]
        _made[name] = getattr(metrics, kind)(name, description=meaning, tag_keys=_TAGS)
    return _made[name]
