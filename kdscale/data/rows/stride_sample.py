"""Evenly spread rows of a stream whose length is not known.

Every stride-th row is kept and the stride doubles when twice the wanted rows are in hand, so memory
stays below two times the result (and a chunk). At the end the wanted number is taken evenly from
those.
"""

import numpy as np

from kdscale.data.rows.order import spread
from kdscale.data.rows.pack import concatenate
from kdscale.types import Rows


class EvenSample:
    """At most `wanted` rows, evenly over all that were offered, in order; all if there are fewer.

    Which ones depends on their positions only, not on how they were cut into chunks.
    """

    def __init__(self, wanted: int, seq_len: int) -> None:
        self._wanted = wanted
        self._row_length = seq_len
        self._stride = 1
        self._offered = 0
        self._parts: list[Rows] = []
        self._held = 0

    def offer(self, rows: Rows) -> None:
        """The stream's next rows."""
        # The first of these rows whose position in the stream is a multiple of the stride.
        first = -self._offered % self._stride
        self._offered += len(rows)
        picked = rows.take(np.arange(first, len(rows), self._stride))
        if len(picked):
            self._parts.append(picked)
            self._held += len(picked)
        while self._held >= 2 * self._wanted:
            held = concatenate(self._parts, self._row_length)
            thinned = held.take(np.arange(0, self._held, 2))
            self._parts, self._held = [thinned], len(thinned)
            self._stride *= 2

    def result(self) -> Rows:
        """The rows chosen."""
        held = concatenate(self._parts, self._row_length)
        count = min(self._wanted, self._held)
        return held.take(spread(count, self._held))
