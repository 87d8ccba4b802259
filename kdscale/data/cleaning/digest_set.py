"""A set of 128-bit digests that takes 16 bytes each.

Sorted arrays, each more than `_RATIO` times as long as the next one (as the levels of a
log-structured merge tree; O'Neil et al., Acta Informatica 1996): a digest moves a few times to a
longer one, and is looked for in a handful of them.
"""

import numpy as np

from kdscale.data.rows.selection import first_of_each

_RATIO = 8

# [n] uint64 each, sorted by the first: the two halves of n digests.
_Level = tuple[np.ndarray, np.ndarray]


class DigestSet:
    """Remembers digests. A merge takes some 20 more bytes a digest while it lasts."""

    def __init__(self) -> None:
        self._levels: list[_Level] = []

    def add(self, digests: np.ndarray) -> np.ndarray:
        """[n] bool: which of the [n, 16] uint8 digests are the first of their value."""
        pairs = np.ascontiguousarray(digests).view("<u8").reshape(-1, 2)
        fresh = first_of_each(pairs)
        for level in self._levels:
            fresh &= ~_contains(level, pairs)
        new = pairs[fresh]
        if len(new):
            order = np.argsort(new[:, 0])
            self._levels.append((new[order, 0], new[order, 1]))
        while len(self._levels) > 1 and self._crowded():
            low = self._levels.pop()
            self._levels.append(_merged(self._levels.pop(), low))
        return fresh

    def _crowded(self) -> bool:
        return len(self._levels[-2][0]) <= _RATIO * len(self._levels[-1][0])


def _contains(level: _Level, pairs: np.ndarray) -> np.ndarray:
    """[n] bool: which of the [n, 2] pairs are there."""
    first, second = level
    found = np.zeros(len(pairs), bool)
    at = np.searchsorted(first, pairs[:, 0])
    looked = np.arange(len(pairs))
    # Digests that share their first half stand side by side.
    while len(looked):
        inside = at[looked] < len(first)
        looked = looked[inside]
        looked = looked[first[at[looked]] == pairs[looked, 0]]
        found[looked] |= second[at[looked]] == pairs[looked, 1]
        at[looked] += 1
    return found


def _merged(long: _Level, short: _Level) -> _Level:
    places = np.searchsorted(long[0], short[0])
    return np.insert(long[0], places, short[0]), np.insert(long[1], places, short[1])
