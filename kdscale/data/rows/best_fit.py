"""Bounded-space best fit: pieces into rows of one length, in one pass and bounded memory.

Each piece goes into the open row that it fills best, and the fullest row is closed when too many
are open (Csirik and Johnson, "Bounded space on-line bin packing: best is better than first",
Algorithmica 2001). Deterministic, and it needs no knowledge of what is to come.
"""

from bisect import bisect_left, insort
from collections.abc import Iterator
from typing import Generic, TypeVar

OPEN_ROWS = 64

Piece = TypeVar("Piece")


class BestFit(Generic[Piece]):
    """Rows of `length` positions that are being filled with pieces."""

    def __init__(self, length: int, smallest: int) -> None:
        """Close rows with room for less than `smallest` positions."""
        self._length, self._smallest = length, smallest
        # (free positions, number) of the open rows, sorted: the best fit is one bisection away.
        self._free: list[tuple[int, int]] = []
        self._open: dict[int, list[Piece]] = {}
        self._opened = 0

    def add(self, piece: Piece, length: int) -> Iterator[list[Piece]]:
        """Place a piece of `length` positions; yield the pieces of each row that this closes."""
        at = bisect_left(self._free, (length, 0))
        if at < len(self._free):
            free, number = self._free.pop(at)
            self._open[number].append(piece)
        else:
            free, number = self._length, self._opened
            self._opened += 1
            self._open[number] = [piece]
        if free - length < self._smallest:
            yield self._open.pop(number)
        else:
            insort(self._free, (free - length, number))
        if len(self._free) > OPEN_ROWS:
            yield self._open.pop(self._free.pop(0)[1])

    def close(self) -> Iterator[list[Piece]]:
        """Yield the rows that are still open, the oldest first."""
        for _, number in sorted(self._free, key=lambda entry: entry[1]):
            yield self._open.pop(number)
        self._free.clear()
