"""Batches in an epoch's order, for any number of ranks and workers, resumed from a few integers.

The rows of a global batch follow from its step alone, so ranks and workers never talk, and a run
may go on with other numbers of both. Workers are threads: reading is waiting, hashing, decoding and
copying, all outside the interpreter's lock, and they share one table of chunks. Processes would
pickle every batch, which takes longer than reading it, and hold a table each.
"""

import itertools
import time
from collections.abc import Generator, Iterator
from contextlib import closing
from typing import Any, Protocol

import numpy as np

from kdscale.cache.read.batches import read_batches
from kdscale.cache.read.order import EpochOrder
from kdscale.cache.rows import CachedRows
from kdscale.errors import KdscaleError
from kdscale.utils.permutation import VERSION

# At most so many positions' rows are computed at once: a call costs the same for one as for many,
# as long as they are of one window.
_POSITIONS = 4096
_AHEAD_BYTES = 256 << 20


class RowReader(Protocol):
    """What a loader reads from: a CacheReader, or several as one."""

    def __len__(self) -> int:
        """Rows."""
        ...

    def read(self, indices: np.ndarray) -> CachedRows:
        """The rows at `indices` [B], in that order."""
        ...

    @property
    def row_bytes(self) -> int:
        """Bytes of a row."""
        ...

    @property
    def metrics(self) -> dict[str, float]:
        """What reading has cost so far."""
        ...


class CacheLoader:
    """This rank's rows of every global batch of `global_batch_size`, step after step, endlessly.

    Rank r has every `world_size`-th row from the r-th on, as in training; where there are more
    ranks than rows, some get none. A batch may hold the end of an epoch and the start of the next.
    workers: threads that read, 0 to read where the loop runs; ahead: batches read before they are
    asked for, by default as many as 256 MiB hold. Iterate once at a time: a second loop goes on
    where the first stopped.
    """

    def __init__(
        self,
        reader: RowReader,
        order: EpochOrder,
        *,
        global_batch_size: int,
        rank: int = 0,
        world_size: int = 1,
        workers: int = 1,
        ahead: int | None = None,
        start_step: int = 0,
    ) -> None:
        assert order.rows == len(reader), (order, len(reader))
        assert global_batch_size >= 1
        assert 0 <= rank < world_size
        assert min(workers, ahead or 0, start_step) >= 0
        self._reader = reader
        self._order = order
        self._batch_rows = global_batch_size
        self._mine = np.arange(rank, global_batch_size, world_size)
        self._workers = workers
        batch_bytes = max(1, len(self._mine) * reader.row_bytes)
        self._ahead = max(1, _AHEAD_BYTES // batch_bytes) if ahead is None else ahead
        self._step = start_step
        self._loads = 0
        self._tokens = 0
        self._seconds_waited = 0.0
        self._started: float | None = None

    def __iter__(self) -> Iterator[CachedRows]:
        while True:
            # A state that is loaded while we iterate throws away what was read ahead.
            loads = self._loads
            with closing(self._batches(self._step)) as batches:
                while loads == self._loads:
                    batch = self._next(batches)
                    self._step += 1
                    yield batch

    def state_dict(self) -> dict[str, int]:
        """Where the loop stands, as integers: `step` counts the batches handed out, not those read
        ahead. The same on all ranks at the same step."""
        order = self._order
        return {
            "version": VERSION,
            "seed": order.seed,
            "rows": order.rows,
            "chunk_rows": order.chunk_rows,
            "window_chunks": order.window_chunks or 0,
            "global_batch_size": self._batch_rows,
            "step": self._step,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on after `step`, before or while iterating, with any number of ranks and workers.

        KdscaleError where the state is of another order: its steps would be other rows.
        """
        own = self.state_dict()
        differing = [
            f"{name}: the state has {state.get(name)}, this loader {value}"
            for name, value in own.items()
            if name != "step" and state.get(name) != value
        ]
        if differing or not isinstance(state.get("step"), int):
            raise KdscaleError(
                "The loader's state is of another order of rows. " + "; ".join(differing),
                "Resume with the cache, seed and batch size it was saved with, or start over "
                "without it.",
            )
        self._step = state["step"]
        self._loads += 1

    @property
    def metrics(self) -> dict[str, float]:
        """Tokens read a second and the share of the time that the loop waited for them, since it
        began; the shares of chunks found in memory and on disk; and what the reader counts."""
        elapsed = time.monotonic() - self._started if self._started is not None else 0.0
        counts = self._reader.metrics
        found = [counts.get(name, 0.0) for name in ("chunk_hits", "disk_hits", "chunks_fetched")]
        return counts | {
            "tokens": float(self._tokens),
            "tokens_per_second": _share(self._tokens, elapsed),
            "data_wait_share": _share(self._seconds_waited, elapsed),
            "memory_hit_rate": _share(found[0], sum(found)),
            "disk_hit_rate": _share(found[1], sum(found)),
        }

    def _next(self, batches: Iterator[CachedRows]) -> CachedRows:
        started = time.monotonic()
        self._started = started if self._started is None else self._started
        batch = next(batches)
        self._seconds_waited += time.monotonic() - started
        self._tokens += batch.rows.input_ids.size
        return batch

    def _batches(self, start: int) -> Generator[CachedRows, None, None]:
        return read_batches(
            self._reader.read,
            self._rows(start),
            row_bytes=self._reader.row_bytes,
            threads=self._workers,
            ahead=self._ahead,
        )

    def _rows(self, start: int) -> Iterator[np.ndarray]:
        """This rank's row numbers [b] of step `start` and every later one."""
        steps = max(1, min(_POSITIONS, self._order.window_rows) // self._batch_rows)
        for first in itertools.count(start, steps):
            offsets = np.arange(first, first + steps, dtype=np.int64) * self._batch_rows
            positions = offsets[:, None] + self._mine
            yield from self._order.rows_at(positions.ravel()).reshape(positions.shape)


def _share(part: float, whole: float) -> float:
    return part / whole if whole else 0.0
