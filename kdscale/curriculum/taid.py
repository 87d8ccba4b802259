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
from dataclasses import dataclass

import torch

from kdscale.config.online import TaidConfig


@dataclass(frozen=True)
class TaidState:
    """What a checkpoint must hold: `dataclasses.asdict` gives numbers, and TaidState(**them) is
    back."""

    t: float
    momentum: float = 0.0
    loss: float = math.inf  # of the step before; none yet

    def after(self, config: TaidConfig, loss: float, step: int, steps: int) -> "TaidState":
        """The state for the step after `step`, counted from 0, of `steps`, whose loss a token was
        `loss`.

        `loss` must be the mean over all ranks: ranks with losses of their own would drift apart.
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
