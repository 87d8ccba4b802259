"""Scheduled values and stages as pure functions of the step."""

import math
from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate

from kdscale.config.curriculum import Schedule


def value_at(schedule: Schedule, step: int, steps: int) -> float:
    """Return the value at `step`, counted from 0, of `steps`.

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


def stage_starts(stages: int | Sequence[float], steps: int) -> list[int]:
    """Return the first step of each stage of `steps` steps.

    `stages` is a number of equal stages, or the share of each, which sum to 1. A stage begins at
    the first step before which its predecessors' shares are over. Stages shorter than a step may
    begin where the next one does: they are skipped.
    """
    if isinstance(stages, int):
        ends = [(number + 1) / stages for number in range(stages)]
    else:
        ends = list(accumulate(stages))
    # Sums of shares such as 0.1 + 0.2 miss whole steps by the last bits of a float.
    return [0] + [math.ceil(round(end * steps, 6)) for end in ends[:-1]]


def stage_of(starts: Sequence[int], step: int) -> int:
    """Return the number, from 0, of the stage that `step` is in."""
    return bisect_right(starts, step) - 1
