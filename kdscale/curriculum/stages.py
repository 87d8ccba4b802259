"""Stages: consecutive parts of a run, and the steps at which they begin."""

import math
from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate


def stage_starts(stages: int | Sequence[float], steps: int) -> list[int]:
    """First step of each stage of `steps` steps: so many equal stages, or one for each share.

    A stage begins at the first step before which its predecessors' shares are over. Shares sum to
    1. Stages shorter than a step may begin where the next one does: they are skipped.
    """
    if isinstance(stages, int):
        ends = [(number + 1) / stages for number in range(stages)]
    else:
        ends = list(accumulate(stages))
    # Sums of shares such as 0.1 + 0.2 miss whole steps by the last bits of a float.
    return [0] + [math.ceil(round(end * steps, 6)) for end in ends[:-1]]


def stage_of(starts: Sequence[int], step: int) -> int:
    """Number, from 0, of the stage that `step` is in."""
    return bisect_right(starts, step) - 1
