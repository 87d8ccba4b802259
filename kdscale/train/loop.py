"""Training loop, from a start to the last step.

No Ray, no storage, no W&B, neither here nor in what it imports: they come in as `Callbacks`.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Generic, Protocol, TypeVar

import numpy as np
import torch

from kdscale.config.training import TrainingConfig
from kdscale.distributed.rank import Rank
from kdscale.models.head import ModelWithHead
from kdscale.train.backends.base import Backend
from kdscale.train.early_stopping import ValidationHistory
from kdscale.train.learning_rate import learning_rate
from kdscale.train.throughput import Throughput, training_flops

BatchT = TypeVar("BatchT")

MicroBatchLoss = tuple[torch.Tensor, dict[str, torch.Tensor]]
"""Sums over the targets of one micro-batch: the objective, which is differentiated, and detached
scalars to log, by name. A plain tuple, because ZeRO looks for tensors in it."""

ComputeLoss = Callable[[ModelWithHead, BatchT, int], MicroBatchLoss]
"""Loss of a micro-batch at a step. It is called as `backend.model(compute_loss, batch, step)`, see
ModelWithHead."""


@dataclass(frozen=True)
class Step(Generic[BatchT]):
    """This rank's share of one global batch."""

    micro_batches: list[BatchT]
    targets: int  # in the micro-batches
    indices: np.ndarray
    """[B] int64: the sequences of the whole batch, the same on every rank."""


@dataclass(frozen=True)
class Progress:
    """State of a training after a step, as a checkpoint keeps it."""

    step: int = 0  # optimiser steps done
    tokens: int = 0  # targets trained on in them, over all ranks
    validated: ValidationHistory = field(default_factory=ValidationHistory)
    adapted: dict[str, float] = field(default_factory=dict)  # of a StatefulLoss

    def is_final(self, training: TrainingConfig) -> bool:
        """Return whether no step is left: all are done, or early stopping ends the training."""
        return self.step >= training.steps or self.validated.ends(training.early_stopping)


class StatefulLoss(Protocol):
    """The part of a loss that follows the losses of the training: no function of the step alone."""

    def restore(self, saved: Mapping[str, float]) -> None:
        """Continue from a state that `after` returned; from the start where `saved` is empty."""

    def after(self, step: int, means: Mapping[str, float]) -> dict[str, float]:
        """Follow `step`, whose logged values had these means over all ranks; return the state."""


@dataclass
class Callbacks:
    """Functions of the surroundings that the loop calls. Tokens are targets since step 0."""

    validate: Callable[[], dict[str, float]]
    """Return the validation metrics, the same `loss` on every rank. Collective."""

    save: Callable[[Progress], None] = lambda progress: None
    """Write a checkpoint. Collective."""

    log: Callable[[int, int, dict[str, float]], None] = lambda step, tokens, metrics: None
    """Log (step, tokens, metrics); on rank 0 only."""

    progress: Callable[[int, int], None] = lambda done, tokens: None
    """Report (steps done, tokens); on all ranks."""

    metrics: Callable[[int, np.ndarray], dict[str, float]] = lambda step, indices: {}
    """Return further metrics of a step that is logged and of the indices of its batch."""

    stateful_loss: StatefulLoss | None = None
    """Follows every step, on all ranks."""

    stop_requested: Callable[[], bool] = lambda: False
    """Return whether to end the training after this step, with a checkpoint; on any rank."""


def train(
    *,
    backend: Backend,
    training: TrainingConfig,
    worker: Rank,
    start: Progress,
    steps: Iterable[Step[BatchT]],
    compute_loss: ComputeLoss[BatchT],
    callbacks: Callbacks,
) -> Progress:
    """Train from `start` to `training.steps`, early stopping or a requested stop; return the end.

    `steps` yields one Step for each step that is left, the same number of micro-batches on every
    rank. `compute_loss` returns sums; the division by the targets of all ranks and micro-batches
    happens here, once.
    """
    now, batches, stateful = start, iter(steps), callbacks.stateful_loss
    throughput = Throughput(worker, training_flops(backend.model))
    while not now.is_final(training):
        batch = throughput.next_of(batches)
        targets, stops = _shared(batch.targets, callbacks.stop_requested(), worker)
        rate = learning_rate(training.optimiser, now.step, training.steps)
        backend.model.train()
        sums = _accumulate(backend, batch, compute_loss, now.step, targets)
        norm = backend.step(rate)
        throughput.end_step(int(targets))

        done, tokens = now.step + 1, now.tokens + int(targets)
        last = done == training.steps
        logs = done % training.log_every == 0 or last or done == 1
        metrics: dict[str, float] = {}
        means = _mean_over_ranks(sums, worker, targets) if logs or stateful else {}
        if logs:
            metrics |= {f"train/{name}": value for name, value in means.items()}
            metrics |= {"lr": rate, "train/gradient_norm": norm}
            metrics |= callbacks.metrics(done - 1, batch.indices) | throughput.metrics()
        adapted = stateful.after(done - 1, means) if stateful else {}
        now = replace(now, step=done, tokens=tokens, adapted=adapted)
        if done % training.validate_every == 0 or last:
            found = callbacks.validate()
            validated = now.validated.after(done, found["loss"], training.early_stopping)
            now = replace(now, validated=validated)
            metrics |= {f"validation/{name}": value for name, value in found.items()}
        if worker.rank == 0 and metrics:
            callbacks.log(done, tokens, metrics)
        callbacks.progress(done, tokens)
        is_best = training.keep == "best" and now.validated.best_step == done
        is_due = done % training.checkpoint_every == 0
        if is_due or is_best or stops or now.is_final(training):
            callbacks.save(now)
        if stops:
            break
    return now


def _shared(targets: int, stops: bool, worker: Rank) -> tuple[float, bool]:
    """Return (targets of all ranks, whether any rank is to stop), in one collective."""
    mine = torch.tensor([float(targets), float(stops)], device=worker.device)
    total, stopping = worker.all_reduce_sum(mine).tolist()
    return total, stopping > 0


def _accumulate(
    backend: Backend,
    batch: Step[BatchT],
    compute_loss: ComputeLoss[BatchT],
    step: int,
    targets: float,
) -> dict[str, torch.Tensor]:
    """Run forward and backward of every micro-batch; return this rank's sums of logged values."""
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
