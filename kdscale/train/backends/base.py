"""Two ways to train a model over ranks, behind one small interface.

DDP is the default. DeepSpeed ZeRO shards optimiser states, gradients and parameters for models that
need it. Both save the same files, so that any of them, on any number of ranks, can continue.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import torch
from transformers import PreTrainedModel

from kdscale.config.training import TrainingConfig
from kdscale.distributed.rank import Rank
from kdscale.models.head import ModelWithHead
from kdscale.models.modes import checkpoint_activations, set_dropout
from kdscale.train.backends.ddp import DdpBackend
from kdscale.train.backends.zero import ZeroBackend


class Backend(Protocol):
    """A model with its optimiser on this rank."""

    model: torch.nn.Module
    """A ModelWithHead inside of what makes it parallel, called as `model(fn, *arguments)`."""

    def micro_batch(self, last: bool) -> Any:
        """Context of one forward and backward; the end of the `last` one synchronises gradients."""

    def backward(self, loss: torch.Tensor) -> None:
        """Accumulate the gradient of `loss`, this rank's share of a sum over all ranks."""

    def step(self, learning_rate: float) -> float:
        """Clip, update and clear gradients; return their global norm before clipping."""

    def save(self, folder: Path) -> None:
        """Write this rank's share of the state to `folder`. Collective."""

    def load(self, folder: Path) -> None:
        """Restore what `save` wrote on all ranks of any world size. Collective."""

    def export(self, folder: Path) -> None:
        """Write a Hugging Face folder on rank 0. Collective."""

    def trained_values(self) -> dict[str, torch.Tensor]:
        """Return the model's trained parameters by name, whole and in float32. Collective."""

    def close(self) -> None:
        """Free the memory of model and optimiser, which end here. Of all ranks together."""


def make_backend(
    build: Callable[[], PreTrainedModel],
    wrap: Callable[[PreTrainedModel], ModelWithHead],
    training: TrainingConfig,
    micro_batches: int,
    worker: Rank,
) -> Backend:
    """Return DDP or ZeRO around `wrap(build())`, by `training.zero.stage`.

    `micro_batches` are those of a step and rank. What `wrap` gives is trained, but for parameters
    that it has frozen; the built model alone is exported. Raises KdscaleError where the model has
    no dropout to set, or cannot recompute activations.
    """

    def build_for_training() -> PreTrainedModel:
        model = build()
        if training.dropout is not None:
            set_dropout(model, training.dropout)
        if training.activation_checkpointing:
            checkpoint_activations(model)
        return model

    if training.zero.stage == 0:
        backend: Backend = DdpBackend(wrap(build_for_training()), training.optimiser, worker)
    else:
        backend = ZeroBackend(build_for_training, wrap, training, micro_batches, worker)
    with torch.no_grad():
        backend.model(ModelWithHead.detect_head, worker.device)
    return backend
