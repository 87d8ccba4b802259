"""Learning rate as a pure function of the step.

Every schedule rises linearly to the peak, and all but `constant` end at a share of it: `cosine` and
`linear` fall from the end of the warm-up on; `wsd` (warm-up, stable, decay: Hu et al. 2024,
MiniCPM, arXiv:2404.06395) stays at the peak and falls over the last steps only, as a line or as
1 - sqrt, the better shape in Haegele et al. 2024 (arXiv:2405.18392).
"""

import math

from kdscale.config.training import OptimiserConfig


def learning_rate(config: OptimiserConfig, step: int, steps: int) -> float:
    """Return the rate of `step`, counted from 0, of `steps`.

    The last warm-up step has the peak, as has the first one after it (of `wsd`: all before the
    decay); the last step has the final value.
    """
    warmup = round(config.warmup_share * steps)
    if step < warmup:
        return config.learning_rate * (step + 1) / warmup
    final = config.final_learning_rate_share
    height = _height(config, step, warmup, steps)
    return config.learning_rate * (final + (1 - final) * height)


def _height(config: OptimiserConfig, step: int, warmup: int, steps: int) -> float:
    """Return where `step` lies between the final value, 0, and the peak, 1."""
    fallen = (step - warmup) / max(1, steps - 1 - warmup)
    if config.schedule == "constant":
        return 1.0
    if config.schedule == "linear":
        return 1 - fallen
    if config.schedule == "cosine":
        return 0.5 * (1 + math.cos(math.pi * fallen))
    decay = max(1, round(config.decay_share * steps))
    decayed = max(0, step + 1 - (steps - decay)) / decay
    return 1 - (math.sqrt(decayed) if config.decay_shape == "1-sqrt" else decayed)
