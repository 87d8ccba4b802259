"""The learning rate as a pure function of the step."""

import math

from kdscale.config.training import OptimiserConfig


def learning_rate(config: OptimiserConfig, step: int, steps: int) -> float:
    """Linear warm-up, then a cosine to `final_learning_rate_share` of the peak.

    `step` counts from 0. The last warm-up step has the peak; the last step has the final value.
    """
    warmup = round(config.warmup_share * steps)
    if step < warmup:
        return config.learning_rate * (step + 1) / warmup
    progress = (step - warmup) / max(1, steps - 1 - warmup)
    cosine = 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
    share = config.final_learning_rate_share
    return config.learning_rate * (share + (1 - share) * cosine)
