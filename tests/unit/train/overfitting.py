"""A training that learns, then overfits, within a few dozen steps: over real rows, on any rank."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch

from kdscale.config import RunConfig
from kdscale.config.data import DataConfig
from kdscale.data.rows.manifest import FORMAT, VERSION, write_manifest
from kdscale.data.rows.pack import Layout, RowBuilder, RowCounts, concatenate
from kdscale.data.rows.prepared import open_prepared
from kdscale.data.rows.splits import SplitWriter
from kdscale.data.tokenizer import train_tokenizer
from kdscale.models.forward import compute_logits, row_tensors
from kdscale.models.load import load_model
from kdscale.store import Store, open_store, upload_folder
from kdscale.teacher.train import TeacherJob
from kdscale.train.job import TrainingJob
from kdscale.types import Rows

LENGTH, ROWS, PATIENCE = 16, 8, 4


def rows_of(seed: int, count: int) -> Rows:
    """Return sequences of tokens of which the small ones are frequent.

    That can be learned from few of them; what else they hold cannot, so that a model soon overfits.
    """
    random = np.random.default_rng(seed)
    texts = [(random.geometric(0.02, 60).clip(0, 250).astype(np.int32), 100) for _ in range(count)]
    rows = concatenate(list(RowBuilder(Layout(LENGTH, 3, True, False, 0)).build(texts)), LENGTH)
    return rows.take(np.arange(count))


def make_prepared(folder: Path) -> Store:
    """Write prepared data as the stage does, in `folder`."""
    store = open_store(str(folder / "store"))
    info = train_tokenizer(["some words for a tokenizer"], 300, folder / "tokenizer")
    upload_folder(folder / "tokenizer", store, "tokenizer")
    writer = SplitWriter("causal-lm", DataConfig(seq_len=LENGTH), store, "", info, lambda *_: None)
    splits = {
        name: writer._store_rows(name, [rows_of(seed, ROWS)], RowCounts(rows=ROWS))
        for seed, name in enumerate(("train", "validation"))
    }
    manifest = {"format": FORMAT, "version": VERSION, "seq_len": LENGTH}
    write_manifest(store, {**manifest, "tokenizer": info.as_dict(), "splits": splits})
    return store


def session(output: Path, **training: Any) -> TrainingJob:
    """Return a training to `output` that stops early and publishes its best step.

    `training` changes fields of its config.
    """
    shape = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
    }
    fields = {
        "steps": 60,
        "global_batch_size": 4,
        "micro_batch_size": 2,
        "optimiser": {"learning_rate": 1e-2, "schedule": "constant"},
        "log_every": 1,
        "validate_every": 2,
        "checkpoint_every": 3,
        "early_stopping": {"patience": PATIENCE},
        "keep": "best",
        **training,
    }
    config = RunConfig.model_validate(
        {
            "name": "test",
            "output": str(output),
            "data": {"seq_len": LENGTH, "pack": False},
            "teacher": {"model": {"architecture": "llama", "options": shape}, "training": fields},
            "distill": {
                "student": {"teacher_layers": [0]},
                "training": {"steps": 1, "global_batch_size": 1},
            },
            "tracking": {"wandb": "disabled"},
        }
    )
    assert config.teacher.training is not None
    return TrainingJob(
        "teacher", "0" * 16, config, config.teacher.training, open_store(str(output))
    )


def run(session: TrainingJob, prepared: Store) -> dict[int, dict[str, float]]:
    """Train; return the lines that it logged, by step."""
    TeacherJob(session, prepared).run()
    return lines(session)


def lines(session: TrainingJob) -> dict[int, dict[str, float]]:
    """Return the lines that it logged, by step."""
    text = session.output.get("metrics/teacher.jsonl").decode()
    found = [json.loads(line) for line in text.splitlines()]
    assert len({line["step"] for line in found}) == len(found), "a step was logged twice"
    return {line["step"]: line for line in found}


def validation_loss(session: TrainingJob, prepared: Store) -> float:
    """Return the loss of the published model, by plain torch."""
    rows = open_prepared(prepared).split("validation").take(np.arange(ROWS))
    ids, segments, mask, labels, *_ = row_tensors(rows, torch.device("cpu"))
    model = load_model(session.folder.url.removeprefix("file://")).eval()
    with torch.no_grad():
        logits = compute_logits(model, ids, segments, open_prepared(prepared).vocab_size)
    loss = torch.nn.functional.cross_entropy(logits[mask], labels[mask])
    return loss.item()


def best_of(logged: dict[int, dict[str, float]]) -> int:
    """Return the step with the lowest validation loss."""
    losses = {step: x["validation/loss"] for step, x in logged.items() if "validation/loss" in x}
    return min(losses, key=lambda step: (losses[step], step))
