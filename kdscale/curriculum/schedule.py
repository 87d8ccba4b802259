"""A number that changes over training."""

import math

from kdscale.config.curriculum import Schedule


def value_at(schedule: Schedule, step: int, steps: int) -> float:
    """The value at `step`, counted from 0, of `steps`.

    `linear` and `cosine` have `start` at the first step and `end` at the last. `inverse` is
    end + (start - end) / t with t = 1 + step // period.
    """
    start, end = schedule.start, schedule.end
    if schedule.kind == "constant" or end is None:
        return start
    if schedule.kind == "inverse":
        return end + (start - end) / (1 + step // schedule.period)
    done = min(1.0, step / max(1, steps - 1))
    if schedule.kind == "cosine":
        done = 0.5 * (1 - math.cos(math.pi * done))
    return start + (end - start) * done
