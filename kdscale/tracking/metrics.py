"""The table of metrics: what a run measures of itself, and where each figure is shown.

A metric is logged to `metrics/<stage>.jsonl` and W&B under `key`, exported to Prometheus as
`exported`, or both. docs/observability.md lists the same.
"""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Metric:
    """One figure that stages measure."""

    help: str
    unit: str = ""
    key: str = ""
    exported: str = ""
    kind: Literal["Gauge", "Counter"] = "Gauge"  # of Prometheus
    view: bool = False  # a curve of W&B's saved view
    report: bool = False  # drawn by the report, or a column of its tables


_NATS = "nats per token"
_SHARE = "share"

TABLE: tuple[Metric, ...] = (
    Metric("Training loss.", _NATS, "train/loss", "kdscale_loss", view=True, report=True),
    Metric("Cross-entropy on the labels.", _NATS, "train/ce_loss", report=True),
    Metric(
        "KL divergence from the teacher.", _NATS, "train/kl", "kdscale_kl", view=True, report=True
    ),
    Metric(
        "Validation loss.",
        _NATS,
        "validation/loss",
        "kdscale_validation_loss",
        view=True,
        report=True,
    ),
    Metric(
        "Learning rate of the last logged step.",
        "",
        "lr",
        "kdscale_learning_rate",
        view=True,
        report=True,
    ),
    Metric(
        "Norm of the gradient before clipping.",
        "",
        "train/gradient_norm",
        "kdscale_gradient_norm",
        report=True,
    ),
    Metric(
        "Tokens per second over all ranks, since the last logged line.",
        "tokens per second",
        "tokens_per_second",
        "kdscale_tokens_per_second",
        view=True,
        report=True,
    ),
    Metric(
        "Share of a step's time spent waiting for its batch.",
        _SHARE,
        "data_wait_share",
        "kdscale_data_wait_share",
        report=True,
    ),
    Metric(
        "Share of the cache's chunks found in memory or on the local disk.",
        _SHARE,
        "cache_hit_share",
        "kdscale_cache_hit_share",
    ),
    Metric(
        "Share of positions with a target of the teacher's, of a student with its own tokenizer.",
        _SHARE,
        "train/target_share",
    ),
    Metric(
        "Share of the text that a student with its own tokenizer has no room for.",
        _SHARE,
        "cut_share",
    ),
    Metric("Most memory held so far.", "GiB", "memory_gib", "kdscale_memory_gib"),
    Metric("Share of the sequences in the pool.", _SHARE, "curriculum/competence", report=True),
    Metric(
        "Share of the sequences seen so far.", _SHARE, "curriculum/unique_seen_share", report=True
    ),
    Metric("Sequences in the pool.", "sequences", "curriculum/pool_size", report=True),
    Metric("Mean difficulty of a batch.", "", "curriculum/mean_difficulty", report=True),
    Metric("Steps, sequences or domains that are done.", exported="kdscale_done"),
    Metric("Steps, sequences or domains in all.", exported="kdscale_planned"),
    Metric(
        "Tokens processed by this attempt, over all ranks.",
        "tokens",
        exported="kdscale_tokens",
        kind="Counter",
    ),
    Metric(
        "Shards committed by this rank.",
        "shards",
        exported="kdscale_shards_committed",
        kind="Counter",
    ),
    Metric(
        "Bytes of the shards committed by this rank.",
        "bytes",
        exported="kdscale_bytes_committed",
        kind="Counter",
    ),
    Metric(
        "Time that the teacher waited for a full queue.",
        "seconds",
        exported="kdscale_queue_wait_seconds",
        kind="Counter",
    ),
    Metric("Starts of the worker group before the present one.", exported="kdscale_attempt"),
    Metric("1 while the rank works on its stage, then 0.", exported="kdscale_working"),
)

BY_KEY = {metric.key: metric for metric in TABLE if metric.key}
"""Logged metrics by their key."""

EXPORTED = {metric.exported: metric for metric in TABLE if metric.exported}
"""Metrics of Prometheus by their name there."""

VIEW_KEYS = tuple(metric.key for metric in TABLE if metric.view)
"""Keys of the curves in W&B's saved view."""
