"""The training loop: no Ray, no storage, no W&B in it; what it needs of them comes in as
callables."""

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Generic, TypeVar

import torch

from kdscale.config.training import TrainingConfig
from kdscale.train.backend import Backend
from kdscale.train.schedule import learning_rate
from kdscale.workers import Worker

BatchT = TypeVar("BatchT")


@dataclass(frozen=True)
class LossSums:
    """Sums over the target positions of one micro-batch.

    `objective` is differentiated; `parts` are detached scalars to log, by name, summed like it.
    """

    objective: torch.Tensor
    parts: dict[str, torch.Tensor]


@dataclass(frozen=True)
class Step(Generic[BatchT]):
    """This rank's share of one global batch: its micro-batches and the targets in them."""

    micro_batches: list[BatchT]
    targets: int


@dataclass(frozen=True)
class Progress:
    """Where a training stands: optimiser steps done, and targets trained on in them."""

    step: int = 0
    tokens: int = 0


@dataclass
class Hooks:
    """What the loop calls outside of itself.

    `log(step, tokens, metrics)` and `progress(done, tokens)` on rank 0 only; `validate()` and
    `save(step, tokens)` on all ranks; `extra(step)` gives more metrics of that step. Tokens are
    targets trained on since step 0.
    """

    log: Callable[[int, int, dict[str, float]], None]
    validate: Callable[[], dict[str, float]]
    save: Callable[[int, int], None]
    progress: Callable[[int, int], None]
    extra: Callable[[int], dict[str, float]]


def train(
    *,
    backend: Backend,
    training: TrainingConfig,
    worker: Worker,
    start: Progress,
    steps: Iterable[Step[BatchT]],
    compute_loss: Callable[[torch.nn.Module, BatchT, int], LossSums],
    hooks: Hooks,
) -> None:
    """Train from `start` to `training.steps` optimiser steps.

    `steps` yields one Step for each step that is left, the same number of micro-batches on every
    rank. `compute_loss` returns sums; the division by the targets of all ranks and micro-batches
    happens here, once.
    """
    tokens, waited, since = start.tokens, 0.0, time.perf_counter()
    iterator = iter(steps)
    for step in range(start.step, training.steps):
        before = time.perf_counter()
        batch = next(iterator)
        waited += time.perf_counter() - before
        targets = worker.all_reduce_sum(torch.tensor(float(batch.targets), device=worker.device))
        rate = learning_rate(training.optimiser, step, training.steps)
        backend.model.train()
        sums = _accumulate(backend, batch, compute_loss, step, float(targets))
        norm = backend.step(rate)

        tokens += int(targets)
        done = step + 1
        last = done == training.steps
        metrics: dict[str, float] = {}
        if done % training.log_every == 0 or last or done == 1:
            seconds = time.perf_counter() - since
            metrics |= _mean_over_ranks(sums, worker, float(targets))
            metrics |= {"lr": rate, "train/gradient_norm": norm} | hooks.extra(step)
            metrics |= {
                "tokens_per_second": (tokens - start.tokens) / seconds,
                "data_wait_share": waited / seconds,
            }
        if done % training.validate_every == 0 or last:
            metrics |= {f"validation/{name}": v for name, v in hooks.validate().items()}
        if metrics and worker.rank == 0:
            hooks.log(done, tokens, metrics)
        if worker.rank == 0:
            hooks.progress(done, tokens)
        if done % training.checkpoint_every == 0 or last:
            hooks.save(done, tokens)


def _accumulate(
    backend: Backend,
    batch: Step[BatchT],
    compute_loss: Callable[[torch.nn.Module, BatchT, int], LossSums],
    step: int,
    targets: float,
) -> dict[str, torch.Tensor]:
    """Forward and backward of every micro-batch; returns this rank's sums of the logged parts."""
    sums: dict[str, torch.Tensor] = {}
    for index, micro_batch in enumerate(batch.micro_batches):
        with backend.micro_batch(last=index == len(batch.micro_batches) - 1):
            losses = compute_loss(backend.model, micro_batch, step)
            backend.backward(losses.objective / targets)
        for name, value in losses.parts.items():
            sums[name] = sums.get(name, torch.zeros_like(value)) + value
    return sums


def _mean_over_ranks(
    sums: dict[str, torch.Tensor], worker: Worker, targets: float
) -> dict[str, float]:
    names = sorted(sums)
    stacked = torch.stack([sums[name].detach().float() for name in names])
    total = worker.all_reduce_sum(stacked)
    return {
        f"train/{name}": float(value) / targets for name, value in zip(names, total, strict=True)
    }
