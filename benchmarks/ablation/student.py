"""Student of one variant: trained by kdscale's loop, loss and back end, on rows in memory."""

import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.ablation.corpus import Corpus
from kdscale.config import RunConfig
from kdscale.curriculum.sampler import CurriculumSampler
from kdscale.distill.batches import MicroBatch
from kdscale.distill.objective import DistillationLoss, LabelsLoss
from kdscale.distributed.rank import Rank
from kdscale.evaluate.metrics import LanguageModelSums
from kdscale.evaluate.schema import DomainMetrics
from kdscale.models.forward import row_tensors
from kdscale.models.head import ModelWithHead
from kdscale.models.init.calibrate import calibrate
from kdscale.models.init.plan import build_student, plan_student
from kdscale.models.init.width import Kept as KeptDimensions
from kdscale.models.load import load_config_of
from kdscale.models.stored_tensors import StoredTensors
from kdscale.train.backends.base import Backend, make_backend
from kdscale.train.loop import Callbacks, Progress, Step, train

WORKER = Rank(0, 1, torch.device("cpu"))


@dataclass(frozen=True)
class Variant:
    """Targets of a variant: payload [R, T, bytes] uint8 and its codec, or labels alone."""

    payload: np.ndarray | None = None
    codec: Any = None


class Students:
    """Factory of students, each with the same weights for the same seed."""

    def __init__(self, config: RunConfig, teacher: Path, corpus: Corpus) -> None:
        student, shape = config.distill.student, load_config_of(teacher)
        self._plan = plan_student(
            student,
            shape,
            vocab_size=corpus.vocab_size,
            special_ids={},
            seq_len=corpus.rows.input_ids.shape[1],
        )
        self._teacher = StoredTensors.open(teacher, shape) if student.takes_from_teacher else None
        self._kept: KeptDimensions | None = None
        if student.width is not None:
            sample = corpus.rows.take(np.arange(student.width.calibration_sequences))
            self._kept = self._plan.keep(calibrate(student.width, teacher, None, sample, WORKER))

    def start(self, config: RunConfig, vocab_size: int) -> Backend:
        """Return a student before its first step."""
        return make_backend(
            lambda: build_student(self._plan, self._teacher, self._kept, config.seed),
            partial(ModelWithHead, vocab_size=vocab_size),
            config.distill.training,
            _micro_batches(config),
            WORKER,
        )


def run_variant(
    config: RunConfig,
    students: Students,
    corpus: Corpus,
    held_out: Corpus,
    variant: Variant,
    difficulty: np.ndarray,
) -> dict[str, float]:
    """Train a student on `corpus` and return its scores on `held_out`."""
    started = time.perf_counter()
    found = evaluate(train_student(config, students, corpus, variant, difficulty), held_out)
    return {
        "loss": found["loss"],
        "kl": found["kl_teacher_student"],
        "agreement": found["agreement_top1"],
        "ece": found["ece"],
        "seconds": time.perf_counter() - started,
    }


def train_student(
    config: RunConfig,
    students: Students,
    corpus: Corpus,
    variant: Variant,
    difficulty: np.ndarray,
) -> Backend:
    """Train a student on `corpus`, its rows ordered by the config and their `difficulty` [R]."""
    backend = students.start(config, corpus.vocab_size)
    loss = LabelsLoss() if variant.codec is None else DistillationLoss(config, variant.codec, None)
    train(
        backend=backend,
        training=config.distill.training,
        worker=WORKER,
        start=Progress(),
        steps=read_steps(config, corpus, variant, difficulty),
        compute_loss=loss,
        callbacks=Callbacks(validate=lambda: {"loss": 0.0}),  # no decision hangs on it here
    )
    return backend


def read_steps(
    config: RunConfig, corpus: Corpus, variant: Variant, difficulty: np.ndarray
) -> Iterator[Step[MicroBatch]]:
    """Yield the rows of every step, in micro-batches."""
    training = config.distill.training
    sampler = CurriculumSampler(
        config.distill.curriculum,
        len(difficulty),
        global_batch_size=training.global_batch_size,
        steps=training.steps,
        seed=config.seed,
    )
    sampler.set_difficulty(0, difficulty)
    for step in range(training.steps):
        batch = sampler.batch(step)
        parts = np.array_split(batch, _micro_batches(config))
        micro_batches = [micro_batch(corpus, variant, part) for part in parts]
        yield Step(micro_batches, sum(int(each.rows.mask.sum()) for each in micro_batches), batch)


def micro_batch(corpus: Corpus, variant: Variant, rows: np.ndarray) -> MicroBatch:
    """Return rows as one micro-batch."""
    made, shape = row_tensors(corpus.rows.take(rows), WORKER.device), corpus.rows.input_ids.shape
    empty = np.empty((len(rows), shape[1], 0), np.uint8)
    payload = empty if variant.payload is None else variant.payload[rows]
    return MicroBatch(made, torch.from_numpy(payload), None)


@torch.no_grad()
def evaluate(backend: Backend, corpus: Corpus) -> DomainMetrics:
    """Score all rows against the labels and the teacher's distribution."""
    backend.model.eval()
    sums = LanguageModelSums()
    for row in range(len(corpus)):
        ids, segments, mask, *_ = row_tensors(corpus.rows.take(np.array([row])), WORKER.device)
        logits = backend.model(_logits, ids, segments, mask)
        sums.update(logits, corpus.labels(row), corpus.log_probs(row))
    return sums.metrics()


def _logits(
    model: ModelWithHead, ids: torch.Tensor, segments: torch.Tensor, mask: torch.Tensor
) -> torch.Tensor:
    return model.head.logits(model.hidden(ids, segments)[mask])


def _micro_batches(config: RunConfig) -> int:
    training = config.distill.training
    return -(-training.global_batch_size // training.micro_batch_size)
