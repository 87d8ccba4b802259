"""The training loop: no Ray, no storage, no W&B in it; what it needs of them comes in as
callables."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Generic, Protocol, TypeVar

import numpy as np
import torch

from kdscale.config.training import TrainingConfig
from kdscale.distributed.rank import Rank
from kdscale.models.head import ModelWithHead
from kdscale.models.load import count_parameters
from kdscale.train.backends.base import Backend
from kdscale.train.early_stopping import ValidationHistory
from kdscale.train.learning_rate import learning_rate
from kdscale.train.throughput import Throughput

BatchT = TypeVar("BatchT")


LossSums = tuple[torch.Tensor, dict[str, torch.Tensor]]
"""Sums over the target positions of one micro-batch: the objective, which is differentiated, and
detached scalars to log, by name. A plain tuple, because ZeRO looks for tensors in it."""

ComputeLoss = Callable[[ModelWithHead, BatchT, int], LossSums]
"""From the model, a micro-batch and the step to its sums; a use of the model."""


@dataclass(frozen=True)
class Step(Generic[BatchT]):
    """This rank's share of one global batch."""

    micro_batches: list[BatchT]
    targets: int
    """Target positions in the micro-batches."""

    indices: np.ndarray
    """[global batch size] int64: the sequences of the whole global batch, of all ranks."""


@dataclass(frozen=True)
class Progress:
    """Where a training stands: optimiser steps done, targets trained on in them, what the
    validations have shown, and what an Adaptive has made of the steps."""

    step: int = 0
    tokens: int = 0
    validated: ValidationHistory = field(default_factory=ValidationHistory)
    adapted: dict[str, float] = field(default_factory=dict)

    def is_final(self, training: TrainingConfig) -> bool:
        """Whether no step is left: all are done, or early stopping ends the training."""
        return self.step >= training.steps or self.validated.ends(training.early_stopping)


class StatefulLoss(Protocol):
    """What changes with the losses of the training itself, and so is no function of the step."""

    def restore(self, saved: Mapping[str, float]) -> None:
        """Go on from what `after` gave in an earlier run; from the start where that is empty."""

    def after(self, step: int, means: Mapping[str, float]) -> dict[str, float]:
        """Follow `step`, whose logged parts had these means over all ranks: what is to be kept of
        it for `restore`."""


@dataclass
class Callbacks:
    """What the loop calls outside of itself.

    `log(step, tokens, metrics)` on rank 0 only; `progress(done, tokens)`, `validate()`, which
    gives every rank the same `loss`, and `save(progress)` on all ranks; `extra(step, indices)`
    gives more metrics of a step with the global batch `indices`; `adaptive` follows every step on
    all ranks. `stop_requested()` on any rank ends the training after a step, with a checkpoint.
    Tokens are targets trained on since step 0.
    """

    log: Callable[[int, int, dict[str, float]], None]
    validate: Callable[[], dict[str, float]]
    save: Callable[[Progress], None]
    progress: Callable[[int, int], None]
    extra: Callable[[int, np.ndarray], dict[str, float]]
    adaptive: StatefulLoss | None = None
    stop_requested: Callable[[], bool] = lambda: False


def train(
    *,
    backend: Backend,
    training: TrainingConfig,
    worker: Rank,
    start: Progress,
    steps: Iterable[Step[BatchT]],
    compute_loss: ComputeLoss[BatchT],
    hooks: Callbacks,
) -> Progress:
    """Train from `start` to `training.steps` optimiser steps, or to where early stopping or a
    request to leave ends it.

    `steps` yields one Step for each step that is left, the same number of micro-batches on every
    rank. `compute_loss` returns sums; the division by the targets of all ranks and micro-batches
    happens here, once. Returns where the training stands at its end.
    """
    now, batches = start, iter(steps)
    meter = Throughput(worker, count_parameters(backend.model))
    while not now.is_final(training):
        batch = meter.next_of(batches)
        targets, leaves = _shared(batch.targets, hooks.stop_requested(), worker)
        rate = learning_rate(training.optimiser, now.step, training.steps)
        backend.model.train()
        sums = _accumulate(backend, batch, compute_loss, now.step, targets)
        norm = backend.step(rate)
        meter.end_step(int(targets))

        done, tokens = now.step + 1, now.tokens + int(targets)
        last = done == training.steps
        logs = done % training.log_every == 0 or last or done == 1
        metrics: dict[str, float] = {}
        means = _mean_over_ranks(sums, worker, targets) if logs or hooks.adaptive else {}
        if logs:
            metrics |= {f"train/{name}": value for name, value in means.items()}
            metrics |= {"lr": rate, "train/gradient_norm": norm}
            metrics |= hooks.extra(done - 1, batch.indices)
            metrics |= meter.metrics()
        adapted = hooks.adaptive.after(done - 1, means) if hooks.adaptive else {}
        now = replace(now, step=done, tokens=tokens, adapted=adapted)
        if done % training.validate_every == 0 or last:
            found = hooks.validate()
            validated = now.validated.after(done, found["loss"], training.early_stopping)
            now = replace(now, validated=validated)
            metrics |= {f"validation/{name}": value for name, value in found.items()}
        if worker.rank == 0 and metrics:
            hooks.log(done, tokens, metrics)
        hooks.progress(done, tokens)
        is_best = training.keep == "best" and now.validated.best_step == done
        is_due = done % training.checkpoint_every == 0
        if is_due or is_best or leaves or now.is_final(training):
            hooks.save(now)
        if leaves:
            break
    return now


def _shared(targets: int, leaves: bool, worker: Rank) -> tuple[float, bool]:
    """(targets of all ranks, whether any rank was asked to leave), in one collective."""
    mine = torch.tensor([float(targets), float(leaves)], device=worker.device)
    total, leaving = worker.all_reduce_sum(mine).tolist()
    return total, leaving > 0


def _accumulate(
    backend: Backend,
    batch: Step[BatchT],
    compute_loss: ComputeLoss[BatchT],
    step: int,
    targets: float,
) -> dict[str, torch.Tensor]:
    """Forward and backward of every micro-batch; returns this rank's sums of the logged parts."""
    sums: dict[str, torch.Tensor] = {}
    for index, micro_batch in enumerate(batch.micro_batches):
        with backend.micro_batch(last=index == len(batch.micro_batches) - 1):
            objective, parts = backend.model(compute_loss, micro_batch, step)
            backend.backward(objective / targets)
        for name, value in parts.items():
            sums[name] = sums.get(name, torch.zeros_like(value)) + value
    return sums


def _mean_over_ranks(
    sums: dict[str, torch.Tensor], worker: Rank, targets: float
) -> dict[str, float]:
    names = sorted(sums)
    stacked = torch.stack([sums[name].detach().float() for name in names])
    total = worker.all_reduce_sum(stacked)
    return {name: float(value) / targets for name, value in zip(names, total, strict=True)}
