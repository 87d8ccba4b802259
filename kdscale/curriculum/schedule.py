"""A number that changes over training."""

import math

from kdscale.config.curriculum import Schedule
from kdscale.curriculum.stages import stage_of, stage_starts


def value_at(schedule: Schedule, step: int, steps: int) -> float:
    """The value at `step`, counted from 0, of `steps`.

    `linear` and `cosine` have `start` at the first step, and `end` from the share `until` of the
    run on: by default at its last step. `inverse` is end + (start - end) / t with
    t = 1 + step // period. `stages` has each of `values` for its share of the run.
    """
    if schedule.values is not None:
        starts = stage_starts(schedule.shares or len(schedule.values), steps)
        return schedule.values[stage_of(starts, step)]
    start, end = schedule.start, schedule.end
    assert start is not None, schedule
    if end is None:
        return start
    if schedule.kind == "inverse":
        return end + (start - end) / (1 + step // schedule.period)
    done = min(1.0, step / max(1.0, schedule.until * (steps - 1)))
    if schedule.kind == "cosine":
        done = 0.5 * (1 - math.cos(math.pi * done))
    return start + (end - start) * done
