"""A distillation of a loaded student over real rows and a planted cache, on any number of ranks."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from kdscale.cache.read.reader import CacheSource
from kdscale.config import RunConfig
from kdscale.data.rows.prepared import Prepared, open_prepared
from kdscale.distill.before import BeforeJob
from kdscale.distill.worker import DistillJob
from kdscale.models.hf_folder import ModelReference
from kdscale.store import Store, open_store
from kdscale.train.job import TrainingJob
from tests.changes import changed
from tests.unit.cache.planted import make_planted
from tests.unit.train.overfitting import LENGTH, make_prepared

NO_TEACHER = ModelReference("0" * 16, "unused", None, "0" * 16, 0)
STEPS = 4


@dataclass(frozen=True)
class Place:
    """Prepared data and a cache of its sequences' length."""

    folder: Path
    prepared: Store
    cache: Store

    @property
    def data(self) -> Prepared:
        """The prepared data, opened."""
        return open_prepared(self.prepared)


def make_place(folder: Path) -> Place:
    """Write the data and the cache; its ids are some of the tokenizer's."""
    cache = open_store(str(folder / "cache"))
    make_planted(cache).publish()
    return Place(folder, make_prepared(folder / "prepared"), cache)


def distil_config(output: Path, student: dict[str, Any], **changes: Any) -> RunConfig:
    """Return a config whose `student` learns for four steps; `changes` are dotted with `__`."""
    tree: dict[str, Any] = {
        "name": "test",
        "output": str(output),
        "data": {"seq_len": LENGTH, "pack": False, "tokenizer": {"kind": "teacher"}},
        "teacher": {"load": "unused"},
        "distill": {
            "student": student,
            "training": {
                "steps": STEPS,
                "global_batch_size": 5,
                "micro_batch_size": 2,
                "optimiser": {"learning_rate": 1e-2, "warmup_share": 0.0},
                "log_every": 1,
                "checkpoint_every": 2,
            },
            "cache_disk_gib": 0,
        },
        "tracking": {"wandb": "disabled"},
    }
    return RunConfig.model_validate(changed(tree, changes))


def distil_job(
    config: RunConfig, place: Place, names: Sequence[str] = ("student", "baseline")
) -> DistillJob:
    """Return the job of the distill stage, as the driver makes it."""
    output = open_store(config.output)
    trainings = [TrainingJob(name, name, config, config.distill.training, output) for name in names]
    return DistillJob(
        trainings=trainings,
        prepared=place.prepared,
        caches=[CacheSource(place.cache, 1, 1.0)],
        expected={},
        teacher=NO_TEACHER,
        tables=output.child("curriculum"),
        before=BeforeJob("before", output),
    )


def logged(output: str | Path, stage: str = "distill") -> list[dict[str, float]]:
    """Return the lines that the student, or the `baseline`, logged."""
    text = open_store(str(output)).get(f"metrics/{stage}.jsonl").decode()
    return [json.loads(line) for line in text.splitlines()]


def make_causal(folder: Path, kind: str, vocab_size: int, **options: Any) -> PreTrainedModel:
    """Save a small causal model with large random weights, by transformers alone; return it."""
    config = AutoConfig.for_model(kind, vocab_size=vocab_size, **options)
    torch.manual_seed(7)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape))
    model.save_pretrained(folder)
    return model
