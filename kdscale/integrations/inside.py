"""Functions that run inside of the forward of a model that a Trainer wraps, and sums of theirs."""

from collections.abc import Callable, Mapping
from typing import Any

import torch

from kdscale.api.loss import loss_parts
from kdscale.distill.batches import Batch
from kdscale.models.head import ModelWithHead
from kdscale.train.loop import MicroBatchLoss


class Call:
    """A function of the trained model, to run inside of a forward."""

    def __init__(self, trained: ModelWithHead, fn: Callable[..., Any], given: Any) -> None:
        self._trained, self._fn, self._given = trained, fn, given

    def run(self) -> Any:
        """Return what the function returns."""
        return self._fn(self._trained, *self._given)


def take_functions(model: Any, vocab_size: int) -> ModelWithHead:
    """Let the forward of `model` run a Call in its own place, with `model` as a ModelWithHead.

    Data parallelism and ZeRO act around that forward, and the loss has to be inside: it reads the
    head's weight. Any other arguments go where they went before.
    """
    forward = model.forward
    trained = ModelWithHead(model, vocab_size)

    def run(*arguments: Any, **named: Any) -> Any:
        if not (arguments and isinstance(arguments[0], Call)):
            return forward(*arguments, **named)
        # What accelerate puts around this function is a context of autocast that, entered again
        # by a forward inside of the call, would never end.
        outer, model.forward = model.forward, forward
        try:
            return arguments[0].run()
        finally:
            model.forward = outer

    model.forward = run
    return trained


def losses(
    trained: ModelWithHead, batch: Batch, kd_weight: float, divergence: str | Mapping[str, Any]
) -> MicroBatchLoss:
    """Return the sums over a batch's targets: what is trained on, and what is logged."""
    hidden = trained.hidden_at(batch.rows)
    found = loss_parts(hidden, trained.head, batch, kd_weight=kd_weight, divergence=divergence)
    parts = {"ce_loss": found.cross_entropy}
    if found.kl is not None:
        parts["kl"] = found.kl
    else:
        parts["divergence"] = found.distillation
    return found.objective, parts


class Sums:
    """Sums by name on this rank, in float64 on the device."""

    def __init__(self) -> None:
        self._sums: dict[str, torch.Tensor] = {}

    def add(self, values: Mapping[str, torch.Tensor]) -> None:
        """Add a scalar to each sum."""
        for name, value in values.items():
            value = value.detach().double()
            self._sums[name] = self._sums[name] + value if name in self._sums else value

    def drain(self, accelerator: Any) -> dict[str, float]:
        """Return the sums over all ranks, and start again. Collective."""
        names = sorted(self._sums)
        stacked = torch.stack([self._sums[name] for name in names])
        self._sums = {}
        return dict(zip(names, accelerator.reduce(stacked, reduction="sum").tolist(), strict=True))
