"""TAID in a whole training on real gloo ranks: one t for all, and back from a checkpoint."""

import json
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import PreTrainedModel

from kdscale.cache.codecs import make_codec
from kdscale.config import RunConfig
from kdscale.config.cache import FullCodec
from kdscale.config.training import ZeroConfig
from kdscale.data.rows.prepared import Prepared, open_prepared
from kdscale.distill.batches import MicroBatch
from kdscale.distill.objective import DistillationLoss
from kdscale.distill.targets import OnlineTeacher
from kdscale.distributed.rank import current_rank
from kdscale.models.forward import row_tensors
from kdscale.models.head import ModelWithHead
from kdscale.models.hf_folder import ModelReference
from kdscale.models.load import build_model
from kdscale.store import Store, open_store
from kdscale.train.batches import sequence_spec, split_micro_batches
from kdscale.train.job import TrainingJob, run_training
from kdscale.train.loop import Step
from tests.ranks import run_ranks
from tests.small_llama import llama_config, strong_llama
from tests.unit.train.overfitting import LENGTH, ROWS, make_prepared

STEPS, SAVED, ALPHA, BETA, START = 8, 3, 0.6, 0.5, 0.2


class Killed(BaseException):
    """Ends a training as a signal would: nothing that it does later is done."""


def make_session(output: str, stage: int) -> TrainingJob:
    raw = {
        "name": "test",
        "output": output,
        "data": {"seq_len": LENGTH, "pack": False, "tokenizer": {"kind": "teacher"}},
        "teacher": {"load": "unused"},
        "distill": {
            "targets": "online",
            "online": {
                "taid": {"start": START, "alpha": ALPHA, "beta": BETA},
                "teacher_sharding": "zero3" if stage == 3 else "none",
            },
            "student": {"teacher_layers": [0]},
            "training": {
                "steps": STEPS,
                "global_batch_size": 5,
                "micro_batch_size": 2,
                "optimiser": {"learning_rate": 1e-2},
                "zero": {"stage": stage},
                "log_every": 1,
                "checkpoint_every": SAVED,
            },
        },
        "tracking": {"wandb": "disabled"},
    }
    config = RunConfig.model_validate(raw)
    return TrainingJob("student", "0" * 16, config, config.distill.training, open_store(output))


class OnlineStudent:
    """A student of an online teacher on prepared data; see TrainingRecipe."""

    def __init__(self, folder: str, prepared: Prepared, session: TrainingJob, stage: int) -> None:
        self.worker, self.prepared, self.table = current_rank(), prepared, prepared.split("train")
        teacher = ModelReference("0" * 16, folder, None, "0" * 16, 0)
        spec = sequence_spec(session.config, prepared, 2)
        online = OnlineTeacher(teacher, self.worker, ZeroConfig(stage=stage), spec)
        codec = make_codec(FullCodec(), prepared.vocab_size)
        self.compute_loss = DistillationLoss(session.config, codec, online)
        self.stateful_loss = self.compute_loss.taid
        self.seen: dict[int, float] = {}
        self.die_at: int | None = None

    def build(self) -> PreTrainedModel:
        return build_model(llama_config(self.prepared.vocab_size, LENGTH), 1)

    def wrap(self, model: PreTrainedModel) -> ModelWithHead:
        return ModelWithHead(model, self.prepared.vocab_size)

    def steps(self, start: int, _: torch.nn.Module) -> Iterator[Step[MicroBatch]]:
        worker = self.worker
        for step in range(start, STEPS):
            if step == self.die_at:
                raise Killed
            self.seen[step] = self.compute_loss.taid.t
            batch = np.arange(5 * step, 5 * step + 5) % ROWS
            parts = []
            for rows, valid in split_micro_batches(batch, 2, worker.rank, worker.world_size):
                made = row_tensors(self.table.take(rows), worker.device, valid)
                parts.append(MicroBatch(made, torch.empty(*made.ids.shape, 0), None))
            yield Step(parts, sum(int(part.rows.mask.sum()) for part in parts), batch)

    def metrics(self, step: int, indices: np.ndarray) -> dict[str, float]:
        return self.compute_loss.metrics(step)


def distil(
    folder: str, prepared: Store, output: str, stage: int, die_at: int | None = None
) -> dict[int, float]:
    """Train to the end, or to where `die_at` (a step, from 0) begins; t of this rank's steps."""
    opened, session = open_prepared(prepared), make_session(output, stage)
    student = OnlineStudent(folder, opened, session, stage)
    student.die_at = die_at
    with suppress(Killed):
        run_training(session, student, student.worker, opened)
    return student.seen


def distil_all(folder: str, prepared: Store, jobs: list[dict[str, Any]]) -> list[dict[int, float]]:
    """One training after the other: starting processes is the slow part."""
    return [distil(folder, prepared, **job) for job in jobs]


def logged(output: str) -> dict[int, dict[str, float]]:
    """By step, from 0."""
    text = open_store(output).get("metrics/distill.jsonl").decode()
    return {line["step"] - 1: line for line in map(json.loads, text.splitlines())}


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Store, Path]:
    """Return a teacher's folder, prepared data, and a folder to write to."""
    where = tmp_path_factory.mktemp("taid")
    prepared = make_prepared(where / "prepared")
    config = llama_config(open_prepared(prepared).vocab_size, LENGTH)
    strong_llama(config, 0).save_pretrained(where / "teacher")
    return str(where / "teacher"), prepared, where


def expected_t(losses: list[float]) -> list[float]:
    """Follow the paper's update, step by step, along the line that ends at the last step."""
    t, momentum, values = START, 0.0, [START]
    for step, (before, loss) in enumerate(zip([None, *losses], losses, strict=False)):
        moved = t
        if before is not None:
            momentum = BETA * momentum + (1 - BETA) * (before - loss) / before
            moved = t + ALPHA / (1 + np.exp(-momentum)) * (1 - t)
        t = max(t, START + (1 - START) * (step + 1) / (STEPS - 1), moved)
        values.append(t)
    return values


@pytest.mark.slow
@pytest.mark.dist
def test_one_t_for_all_ranks_that_comes_back_from_a_checkpoint(
    places: tuple[str, Store, Path],
) -> None:
    folder, prepared, where = places

    def job(name: str, stage: int, die_at: int | None = None) -> dict[str, Any]:
        return {"output": str(where / f"{name}-{stage}"), "stage": stage, "die_at": die_at}

    two = [
        part
        for stage in (0, 3)
        for part in (
            job("whole", stage),
            job("again", stage, SAVED + 1),
            job("again", stage),
            job("fewer", stage, SAVED + 1),
        )
    ]
    by_rank = run_ranks(distil_all, 2, folder, prepared, two)
    assert by_rank[0] == by_rank[1]
    one = [job("fewer", 0), job("fewer", 3), job("more", 0, SAVED + 1)]
    (alone,) = run_ranks(distil_all, 1, folder, prepared, one)
    more = run_ranks(distil_all, 2, folder, prepared, [job("more", 0)])[0][0]

    for stage, (whole, died, again, _), fewer in zip(
        (0, 3), (by_rank[0][:4], by_rank[0][4:]), alone, strict=False
    ):
        lines = logged(two[0]["output"] if stage == 0 else two[4]["output"])
        assert [lines[step]["taid_t"] for step in range(STEPS)] == list(whole.values())
        losses = [lines[step]["train/taid_loss"] for step in range(STEPS)]
        assert list(whole.values()) == pytest.approx(expected_t(losses)[:STEPS], rel=1e-9)
        on_the_line = [START + (1 - START) * step / (STEPS - 1) for step in range(STEPS)]
        assert all(whole[step] > on_the_line[step] + 0.01 for step in range(2, 5))

        # At the same world size: to the bit, in t and in every loss.
        assert died == {step: whole[step] for step in range(SAVED + 1)}
        assert again == {step: whole[step] for step in range(SAVED, STEPS)}
        resumed = logged(str(where / f"again-{stage}"))
        for step, line in lines.items():
            for name in ("train/taid_loss", "train/kl", "train/loss", "taid_t"):
                assert resumed[step][name] == line[name], (stage, step, name)

        # At another: t is what was saved, to the bit; sums of floats differ from there on.
        assert list(fewer) == list(range(SAVED, STEPS))
        assert fewer[SAVED] == whole[SAVED]
        assert list(fewer.values()) == pytest.approx(list(again.values()), rel=1e-4)
    assert more[SAVED] == alone[2][SAVED]
    assert list(more.values()) == pytest.approx(list(by_rank[0][2].values()), rel=1e-4)
