"""TAID in a training: its targets at a step, and how far they have moved to the teacher."""

from collections.abc import Mapping
from dataclasses import asdict

import torch

from kdscale.config.online import TaidConfig
from kdscale.curriculum.taid import TaidState, taid_log_probs
from kdscale.distill.targets import OnlineTargets
from kdscale.losses.divergences import forward_kl_sum
from kdscale.types import DenseTargets, Targets

LOSS = "taid_loss"
"""The name of the mean that t follows."""


class InterpolatedTargets:
    """Targets between the student and its online teacher."""

    def __init__(self, online: OnlineTargets, t: float) -> None:
        """`t` is the teacher's part, 0 to 1."""
        self.layers = online.layers
        self._online = online
        self._t = t
        self._kl: torch.Tensor | None = None

    def at(self, part: slice, logits: torch.Tensor) -> Targets:
        """See BatchTargets."""
        teacher = self._online.at(part, logits).log_probs
        student = torch.log_softmax(logits / self._online.temperature, dim=-1)
        found = forward_kl_sum(teacher, student)
        self._kl = found if self._kl is None else self._kl + found
        return DenseTargets(taid_log_probs(student, teacher, self._t))

    def kl(self, distillation: torch.Tensor) -> torch.Tensor:
        """See BatchTargets. From the teacher itself, not from the targets."""
        if self._kl is None:
            return torch.zeros_like(distillation)
        return self._kl * self._online.temperature**2


class Taid:
    """t over a training. It follows the loss of all ranks, so that it is the same on each."""

    def __init__(self, config: TaidConfig, steps: int) -> None:
        self._config = config
        self._steps = steps
        self._state = TaidState(config.start)

    @property
    def t(self) -> float:
        """The teacher's part in the targets of the step at hand."""
        return self._state.t

    def restore(self, saved: Mapping[str, float]) -> None:
        """See Adaptive."""
        self._state = TaidState(**saved) if saved else TaidState(self._config.start)

    def after(self, step: int, means: Mapping[str, float]) -> dict[str, float]:
        """See Adaptive."""
        self._state = self._state.after(self._config, means[LOSS], step, self._steps)
        return asdict(self._state)
