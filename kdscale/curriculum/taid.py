"""TAID: a target between student and teacher that moves to the teacher as the student learns.

Shing, Misaki, Bao, Yokoi, Akiba, "TAID: Temporally Adaptive Interpolated Distillation", ICLR 2025
(arXiv 2501.16937). The target is softmax((1 - t) z_S + t z_T), without a gradient through z_S; it
needs every logit of the teacher, so no sparse cache can give it. With L the loss of a step:

    r = (L_before - L) / (L_before + 1e-15)
    m <- beta m + (1 - beta) r
    t <- min(end, max(start + (end - start) step / steps, t + alpha sigmoid(m) (1 - t)))

t never falls and is never behind the straight line. The first step has no loss to compare with
and leaves t as it is.
"""

import math
from dataclasses import dataclass

import torch

from kdscale.config.curriculum import TaidConfig


@dataclass(frozen=True)
class TaidState:
    """What a checkpoint must hold: `dataclasses.asdict` is JSON, and TaidState(**it) is back."""

    t: float
    momentum: float = 0.0
    previous_loss: float | None = None

    def after(self, config: TaidConfig, loss: float, step: int, steps: int) -> "TaidState":
        """The state after `step`, counted from 0, of `steps`, whose loss a token was `loss`.

        `loss` must be the mean over all ranks: ranks with losses of their own would drift apart.
        """
        if self.previous_loss is None:
            return TaidState(self.t, self.momentum, loss)
        change = (self.previous_loss - loss) / (self.previous_loss + 1e-15)
        momentum = config.beta * self.momentum + (1 - config.beta) * change
        # The logistic function, in a form that cannot overflow.
        sigmoid = 0.5 * (1 + math.tanh(momentum / 2))
        line = config.start + (config.end - config.start) * step / steps
        ahead = self.t + config.alpha * sigmoid * (1 - self.t)
        return TaidState(min(config.end, max(line, ahead)), momentum, loss)


def taid_start(config: TaidConfig) -> TaidState:
    """The state before the first step."""
    return TaidState(config.start)


def taid_log_probs(
    student_logits: torch.Tensor, teacher_logits: torch.Tensor, t: float
) -> torch.Tensor:
    """Log-probabilities [P, V] float32 of softmax((1 - t) z_S + t z_T), from [P, V] each.

    Both may be shifted by a constant a position, so log-probabilities do as well; both are divided
    by the temperature. No gradient goes through the result. Ids without probability in the teacher
    (-inf: padding) have none here.
    """
    student, teacher = student_logits.detach().float(), teacher_logits.detach().float()
    mixed = (1 - t) * student + t * teacher
    # At t = 0 the product would be NaN.
    return torch.log_softmax(mixed.masked_fill(teacher == -math.inf, -math.inf), dim=-1)
