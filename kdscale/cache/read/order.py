"""Order of an epoch as a function from positions to rows, without a table.

A full shuffle makes every batch open as many chunks as it has rows. Here chunks of consecutive rows
(as many as a chunk has, or a shard) are shuffled, and rows are shuffled inside windows of several
shuffled chunks. So an epoch meets every row once, opens every chunk once, and has at most a window
of chunks open; what it costs is that rows of one chunk stay within a window of each other. The same
idea is in MosaicML Streaming's `py1e` and `py1br` shuffles; this one needs no memory, no number of
nodes and no divisibility.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count

import numpy as np

from kdscale.utils.permutation import hash_key, permute

_SHORT_SLOT, _CHUNKS, _ROWS = 1, 2, 3
# Positions whose rows `batches` computes at once, at most.
_POSITIONS = 4096


@dataclass(frozen=True)
class EpochOrder:
    """Endless epochs over `rows` rows. Position p lies in epoch p // rows.

    `chunk_rows` should be a multiple of the rows of a chunk, or the rows of a shard where a shard
    ends in a short chunk: other values are as right, and fetch the chunks across two chunks twice.
    `window_chunks` None shuffles the whole epoch. Equal fields give equal orders on every machine.
    """

    rows: int
    seed: int
    chunk_rows: int
    window_chunks: int | None

    def __post_init__(self) -> None:
        assert self.rows >= 1, self
        assert self.chunk_rows >= 1, self
        assert self.window_chunks is None or self.window_chunks >= 1, self

    @property
    def window_rows(self) -> int:
        """Rows that are shuffled among each other: all, or those of a window of full chunks."""
        return min(self.rows, (self.window_chunks or self.rows) * self.chunk_rows)

    def rows_at(self, positions: np.ndarray) -> np.ndarray:
        """Row numbers [B] int64 at `positions` ([B] integers from 0). Time and memory are O(B)."""
        positions = np.asarray(positions, dtype=np.int64)
        epochs = positions // self.rows
        found = np.empty(len(positions), dtype=np.int64)
        for epoch in np.unique(epochs):
            here = epochs == epoch
            found[here] = self._epoch(int(epoch)).rows_at(positions[here] % self.rows)
        return found

    def batches(self, size: int, start_step: int = 0) -> Iterator[np.ndarray]:
        """Yield the rows [size] of step `start_step` and every later one, without an end.

        A batch may hold the end of an epoch and the start of the next.
        """
        # A call costs the same for one position as for many, as long as they are of one window.
        together = max(1, min(_POSITIONS, self.window_rows) // size)
        for step in count(start_step, together):
            positions = np.arange(step * size, (step + together) * size, dtype=np.int64)
            yield from self.rows_at(positions).reshape(together, size)

    def _epoch(self, epoch: int) -> "_Epoch":
        chunks = -(-self.rows // self.chunk_rows)
        key = hash_key(self.seed, epoch)
        return _Epoch(
            chunk_rows=self.chunk_rows,
            chunks=chunks,
            window_chunks=min(self.window_chunks or chunks, chunks),
            gap=chunks * self.chunk_rows - self.rows,
            short_slot=hash_key(key, _SHORT_SLOT) % chunks,
            key=key,
        )


@dataclass(frozen=True)
class _Epoch:
    """One epoch's order. Slots are the places of the shuffled chunks.

    The last chunk may be short. It gets a random slot, and the full chunks are shuffled
    over the others, so that where a slot starts is plain arithmetic. To avoid cases, positions are
    mapped to what they would be if the short chunk were full: they skip the `gap` rows it lacks.
    """

    chunk_rows: int
    chunks: int
    window_chunks: int
    gap: int
    short_slot: int
    key: int

    def rows_at(self, positions: np.ndarray) -> np.ndarray:
        """Row numbers at `positions` ([B] int64 in 0 .. rows - 1) of this epoch."""
        window_rows = self.window_chunks * self.chunk_rows
        short_window = self.short_slot // self.window_chunks
        short_window_end = self._end(short_window) - self.gap
        spaced = positions + self.gap * (positions >= short_window_end)
        windows = spaced // window_rows
        slots_rows = np.empty(len(positions), dtype=np.int64)
        for window in np.unique(windows):
            here = windows == window
            start = int(window) * window_rows
            size = self._end(int(window)) - start - self.gap * (window == short_window)
            key = hash_key(self.key, _ROWS, int(window))
            slots_rows[here] = start + permute(spaced[here] - start, int(size), key)
        # Behind the short chunk, rows of its window have to skip the gap too.
        short_end = (self.short_slot + 1) * self.chunk_rows - self.gap
        slots_rows += self.gap * ((windows == short_window) & (slots_rows >= short_end))
        return self._chunk_at(slots_rows // self.chunk_rows) * self.chunk_rows + (
            slots_rows % self.chunk_rows
        )

    def _end(self, window: int) -> int:
        """Return where a window ends if the short chunk were full."""
        return min((window + 1) * self.window_chunks, self.chunks) * self.chunk_rows

    def _chunk_at(self, slots: np.ndarray) -> np.ndarray:
        """Return the chunk in each of `slots`."""
        full = self.chunks - 1
        is_short = slots == self.short_slot
        others = np.where(is_short, 0, slots - (slots > self.short_slot))
        shuffled = permute(others, full, hash_key(self.key, _CHUNKS))
        return np.where(is_short, full, shuffled)
