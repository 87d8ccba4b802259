"""Keys and values of a config that have other names today."""

from typing import Any

_TRAINING = {
    "batch_rows": "global_batch_size",
    "micro_batch_rows": "micro_batch_size",
    "validation_rows": "validation_sequences",
    "early_stopping.least_gain": "early_stopping.min_delta",
}

RENAMED = {
    "data.row_length": "data.seq_len",
    "data.evaluation_rows": "data.evaluation_sequences",
    "cache.rows": "cache.sequences",
    "cache.rows_per_unit": "cache.sequences_per_shard",
    "cache.rows_per_block": "cache.sequences_per_chunk",
    "cache.capture.micro_batch_rows": "cache.capture.micro_batch_size",
    "cache.capture.zero": "cache.capture.teacher_sharding (none or zero3) and teacher_offload",
    "distill.control": "distill.baseline",
    "distill.live": "distill.online",
    "distill.online.zero": "distill.online.teacher_sharding (none or zero3)",
    "distill.curriculum.shuffle_rows": "distill.curriculum.shuffle_sequences",
    "distill.student.width.calibration_rows": "distill.student.width.calibration_sequences",
    "distill.student.width.teacher_zero": (
        "distill.student.width.teacher_sharding (none or zero3)"
    ),
    "evaluate.micro_batch_rows": "evaluate.micro_batch_size",
    "evaluate.speed.rows": "evaluate.speed.sequences",
    "evaluate.teacher_zero": "evaluate.teacher_sharding (none or zero3)",
    **{
        f"{stage}.training.{old}": f"{stage}.training.{new}"
        for stage in ("teacher", "distill")
        for old, new in _TRAINING.items()
    },
}
"""Today's name by the old one, both from the top of the config."""

_VALUES = {("distill.targets", "live"): "online"}


def new_name(field: str, value: Any) -> str | None:
    """Return how a key, or the `value` of a `field`, is called today; None if as it was."""
    if field in RENAMED:
        return f"renamed to {RENAMED[field]}"
    if isinstance(value, str) and (field, value) in _VALUES:
        return f"{value!r} is now {_VALUES[field, value]!r}"
    return None
