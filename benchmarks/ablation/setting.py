"""The run that all variants share, and the scores of finished variants."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.common import log
from kdscale.config import RunConfig
from kdscale.config.base import Config

ROW_LENGTH, ROWS, HELD_OUT_ROWS = 256, 400, 32
BATCH_ROWS = 4
CALM = {"learning_rate": 2e-3, "warmup_share": 0.1, "final_learning_rate_share": 0}
"""Slower than the fastest rate, so that variants differ by their targets, not by chaos."""

NARROW = {
    "hidden_size": 192,
    "intermediate_size": 512,
    "num_attention_heads": 3,
    "num_key_value_heads": 1,
}
"""A third of the teacher's sizes."""

FROM_TEACHER = {
    "teacher_layers": [0, 15, 29],
    "width": {**NARROW, "calibration_sequences": 16, "teacher_sharding": "none"},
}
"""A student of three of the teacher's layers."""


def make_config(
    rows: int,
    seed: int,
    student: dict[str, Any] | None = None,
    curriculum: dict[str, Any] | None = None,
    optimiser: dict[str, Any] | None = None,
    global_batch_size: int = BATCH_ROWS,
) -> RunConfig:
    """Return the config of one pass over `rows` rows, by default in a uniform order."""
    return RunConfig.model_validate(
        {
            "name": "ablation",
            "output": "unused",
            "seed": seed,
            "data": {
                "train": {"kind": "text", "path": "unused"},
                "tokenizer": {"kind": "teacher"},
                "seq_len": ROW_LENGTH,
            },
            "teacher": {"load": "unused"},
            "distill": {
                "student": student or FROM_TEACHER,
                "curriculum": curriculum or {"warmup_share": 0},
                "training": {
                    "steps": rows // global_batch_size,
                    "global_batch_size": global_batch_size,
                    "micro_batch_size": global_batch_size,
                    "optimiser": optimiser or CALM,
                },
            },
        }
    )


def arguments_of(config: Config) -> dict[str, Any]:
    """Return what is set in a config as plain JSON; fields added later change nothing."""
    kind = getattr(config, "kind", None)
    return config.model_dump(mode="json", exclude_defaults=True) | {"kind": kind}


def once(
    folder: Path, name: str, settings: list[Any], run: Callable[[], dict[str, float]]
) -> dict[str, float]:
    """Return the result of `run`, or the one kept from a call with equal `settings`, plain JSON."""
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:12]
    path = folder / f"{name}-{digest}.json"
    if not path.exists():
        found = run()
        folder.mkdir(parents=True, exist_ok=True)
        part = path.with_suffix(".part")
        part.write_text(json.dumps(found))
        part.rename(path)
    found = json.loads(path.read_text())
    log(f"{name:26} " + "  ".join(f"{key} {value:.4f}" for key, value in found.items()))
    return found
