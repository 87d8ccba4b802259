"""TAID: a target between student and teacher that moves to the teacher as the student learns.

Shing, Misaki, Bao, Yokoi, Akiba, "TAID: Temporally Adaptive Interpolated Distillation", ICLR 2025
(arXiv:2501.16937). The target is softmax((1 - t) z_S + t z_T), without a gradient through z_S; it
needs every logit of the teacher, so no sparse cache can give it. With L the distillation loss of a
step, which the authors' code takes as the cross-entropy of the target:

    r = (L_before - L) / (L_before + 1e-15)
    m <- beta m + (1 - beta) r
    t <- max(line, t + alpha sigmoid(m) (1 - t)),   line = start + (1 - start) step / (steps - 1)

t never falls, and is 1 at the last step. The first step has no loss to compare with.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass

import torch

from kdscale.config.online import TaidConfig
from kdscale.distill.targets import OnlineTargets
from kdscale.types import TeacherLogits

LOSS = "taid_loss"
"""Name of the mean that t follows."""


@dataclass(frozen=True)
class TaidState:
    """State of t that a checkpoint keeps, as the numbers of `dataclasses.asdict`."""

    t: float
    momentum: float = 0.0
    loss: float = math.inf  # of the step before; none yet

    def after(self, config: TaidConfig, loss: float, step: int, steps: int) -> "TaidState":
        """Return the state for the step after `step`, counted from 0, of `steps`.

        `loss` is that of `step`, nats a token: the mean over all ranks, as ranks with different
        losses would drift apart.
        """
        momentum, ahead = self.momentum, self.t
        if math.isfinite(self.loss):
            change = (self.loss - loss) / (self.loss + 1e-15)
            momentum = config.beta * momentum + (1 - config.beta) * change
            # The logistic function, in a form that cannot overflow.
            sigmoid = 0.5 * (1 + math.tanh(momentum / 2))
            ahead = self.t + config.alpha * sigmoid * (1 - self.t)
        line = config.start + (1 - config.start) * min(1.0, (step + 1) / max(1, steps - 1))
        # In this order: a loss that is not a number leaves t where it is.
        return TaidState(max(self.t, line, ahead), momentum, loss)


class Taid:
    """The course of t over a training; a StatefulLoss (see `train/loop.py`)."""

    def __init__(self, config: TaidConfig, steps: int) -> None:
        self._config = config
        self._steps = steps
        self._state = TaidState(config.start)

    @property
    def t(self) -> float:
        """The teacher's share in the targets of the next step."""
        return self._state.t

    def restore(self, saved: Mapping[str, float]) -> None:
        """See StatefulLoss."""
        self._state = TaidState(**saved) if saved else TaidState(self._config.start)

    def after(self, step: int, means: Mapping[str, float]) -> dict[str, float]:
        """See StatefulLoss."""
        self._state = self._state.after(self._config, means[LOSS], step, self._steps)
        return asdict(self._state)


class InterpolatedTargets:
    """Targets between the student and its online teacher."""

    def __init__(self, online: OnlineTargets, t: float) -> None:
        """`t` is the teacher's share, 0 to 1."""
        self.layers = online.layers
        self._online = online
        self._t = t
        self._kl: torch.Tensor | None = None

    def at(self, part: slice, logits: Callable[[], torch.Tensor]) -> TeacherLogits:
        """See BatchTargets."""
        online = self._online
        return TeacherLogits(online.logits(part), online.temperature, self._add_kl, self._t)

    def _add_kl(self, kl: torch.Tensor) -> None:
        self._kl = kl if self._kl is None else self._kl + kl

    def kl(self, distillation: torch.Tensor) -> torch.Tensor:
        """See BatchTargets. From the teacher itself, not from the targets."""
        if self._kl is None:
            return torch.zeros_like(distillation)
        return self._kl * self._online.temperature**2
