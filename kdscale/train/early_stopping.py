"""History of a training's validations: which step was best, and whether to stop.

A few numbers that a checkpoint keeps, so that a resumed training decides what the undisturbed one
would have. All ranks get the same loss and so decide the same.
"""

import math
from dataclasses import dataclass, replace

from kdscale.config.training import EarlyStoppingConfig


@dataclass(frozen=True)
class ValidationHistory:
    """The validations up to now."""

    best_loss: float = math.inf  # nats a token
    best_step: int = 0  # 0: no validation gave a loss yet
    reference: float = math.inf  # the loss that the next gain is measured from
    patience_used: int = 0  # validations since the last gain

    def after(
        self, step: int, loss: float, stopping: EarlyStoppingConfig | None
    ) -> "ValidationHistory":
        """Return the history with the validation at `step` added; `loss` is in nats a token.

        Any fall of the loss makes a new best. A gain for `stopping` is a fall by its least gain
        since the last gain, so that smaller ones add up. A loss that is not a number is neither.
        """
        least = stopping.min_delta if stopping is not None else 0.0
        found = replace(self, patience_used=self.patience_used + 1)
        if loss < self.best_loss:
            found = replace(found, best_loss=loss, best_step=step)
        if loss < self.reference and loss <= self.reference - least:
            found = replace(found, reference=loss, patience_used=0)
        return found

    def ends(self, stopping: EarlyStoppingConfig | None) -> bool:
        """Return whether `stopping` has run out of patience."""
        return stopping is not None and self.patience_used >= stopping.patience
