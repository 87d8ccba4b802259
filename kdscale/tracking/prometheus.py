"""Export of metrics to Prometheus through Ray: the only import of ray.util.metrics.

Ray collects the metrics of all processes of a node and serves them at one port of that node; names
get the prefix `ray_`, counters the suffix `_total`. In a process that is no worker of a stage (a
benchmark, a test, a script) nothing is bound, and all calls do nothing.
"""

from typing import Any

from kdscale.tracking.metrics import BY_KEY, EXPORTED

_TAGS = ("run", "stage", "rank", "part")

_tags: dict[str, str] | None = None
_made: dict[str, Any] = {}
_counted: dict[str, float] = {}


def bind(run: str, stage: str, rank: int, attempt: int) -> None:
    """Label this process's metrics from now on as `rank` of a stage's worker group."""
    global _tags
    _tags = {"run": run, "stage": stage, "rank": str(rank), "part": ""}
    _counted.clear()
    gauge("kdscale_attempt", attempt)
    gauge("kdscale_working", 1)


def release() -> None:
    """End this process's stage; its last values stay until the process ends."""
    global _tags
    if _tags is not None:
        _tags["part"] = ""
        gauge("kdscale_working", 0)
        _tags = None


def gauge(name: str, value: float) -> None:
    """Set an exported gauge."""
    if _tags is not None:
        _metric(name).set(value, tags=_tags)


def count(name: str, amount: float) -> None:
    """Add to an exported counter."""
    if _tags is not None and amount > 0:
        _metric(name).inc(amount, tags=_tags)


def count_to(name: str, total: float) -> None:
    """Raise a counter that only this process counts to `total`."""
    count(name, total - _counted.get(name, 0.0))
    _counted[name] = total


def progress(part: str, done: int, planned: int, tokens: int) -> None:
    """Export the progress of `part`: the student, the baseline or a domain.

    The first call for a part sets where this attempt begins, so that tokens are not counted again
    after a restart.
    """
    if _tags is None:
        return
    _tags["part"] = part
    gauge("kdscale_done", done)
    gauge("kdscale_planned", planned)
    count("kdscale_tokens", tokens - _counted.get(part, tokens))
    _counted[part] = tokens


def logged(values: dict[str, float]) -> None:
    """Export the values of a logged line that have a name in Prometheus."""
    for key, value in values.items():
        if key in BY_KEY and BY_KEY[key].exported:
            gauge(BY_KEY[key].exported, value)


def _metric(name: str) -> Any:
    """Return the metric of that name, made when it is first used."""
    if name not in _made:
        from ray.util import metrics

        metric = EXPORTED[name]
        text = f"{metric.help[:-1]}, {metric.unit}." if metric.unit else metric.help
        _made[name] = getattr(metrics, metric.kind)(name, description=text, tag_keys=_TAGS)
    return _made[name]
