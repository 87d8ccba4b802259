"""Loader of a cache's global batches: shared over ranks, read ahead, resumed from a step.

A batch takes single sequences out of many chunks, and finding a chunk costs as much as copying a
dozen sequences of it. So batches that follow each other are read together: first one, so that a
loop starts soon, then twice as many each time, up to what `prefetch` allows. Readers are threads:
reading is waiting, hashing, decoding and copying, all outside the interpreter's lock, and threads
share one table of chunks. Processes would pickle every batch, which takes longer than reading it.
"""

from collections import deque
from collections.abc import Generator, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass
from itertools import chain, islice
from typing import Protocol

import numpy as np

from kdscale.cache.prefetch import ordered_map
from kdscale.cache.rows import CachedRows
from kdscale.utils.rank_share import rank_share

THREADS = 4
"""Threads that read ahead, at most."""

# Bytes that are read together: from 4 MiB on NumPy asks for huge pages, and smaller arrays cost
# more to map than to fill.
GROUP_BYTES = 8 << 20
_PREFETCH_BYTES = 256 << 20


class Reader(Protocol):
    """The part of a CacheReader (or of several as one) that a loader needs."""

    def read(self, indices: np.ndarray) -> CachedRows:
        """Return the sequences at `indices` [B], in that order."""
        ...

    @property
    def row_bytes(self) -> int:
        """Bytes of a sequence in memory."""
        ...


@dataclass(frozen=True)
class LoadedBatch:
    """One rank's share of a global batch of B sequences: b = ceil(B / ranks) of them."""

    step: int
    indices: np.ndarray  # [B] int64: the global batch
    valid: np.ndarray  # [b] bool: False for a repeated sequence that only fills up the share
    sequences: CachedRows  # of b


class CacheLoader:
    """The global batches `batches` ([B] indices each) from `start_step` on, one rank's share each.

        reader = CacheReader(open_store("s3://bucket/run/cache/..."))
        order = EpochOrder(len(reader), seed=0, chunk_rows=reader.sequences_per_chunk,
                           window_chunks=64)
        for batch in CacheLoader(reader, order.batches(32, start_step=100), start_step=100):
            ...

    Rank r takes every `world_size`-th sequence from the r-th on; where it has fewer than another
    rank, the batch's first sequence fills its share up, marked as not valid. So the sequences of a
    step depend on the step alone, and a training may resume with other ranks.
    prefetch: batches read before they are asked for, by default as many as 256 MiB hold; threads:
    that read them, by default up to 4; 0 reads where the loop runs. An error surfaces at its batch.
    """

    def __init__(
        self,
        reader: Reader,
        batches: Iterable[np.ndarray],
        *,
        rank: int = 0,
        world_size: int = 1,
        prefetch: int | None = None,
        threads: int | None = None,
        start_step: int = 0,
    ) -> None:
        assert 0 <= rank < world_size, (rank, world_size)
        self._reader = reader
        self._batches = batches
        self._rank, self._world_size = rank, world_size
        self._prefetch, self._threads = prefetch, threads
        self._start_step = start_step

    def __iter__(self) -> Generator[LoadedBatch, None, None]:
        # Batches on their way, in order.
        pending: deque[tuple[np.ndarray, np.ndarray]] = deque()

        def shares() -> Iterator[np.ndarray]:
            for indices in self._batches:
                mine, valid = rank_share(indices, self._rank, self._world_size)
                pending.append((indices, valid))
                yield mine

        read = read_batches(self._reader, shares(), prefetch=self._prefetch, threads=self._threads)
        with closing(read):
            for step, sequences in enumerate(read, self._start_step):
                yield LoadedBatch(step, *pending.popleft(), sequences)


def read_batches(
    reader: Reader,
    orders: Iterable[np.ndarray],
    *,
    prefetch: int | None = None,
    threads: int | None = None,
) -> Generator[CachedRows, None, None]:
    """Read each of `orders` ([B] indices), in their order; see CacheLoader.

    At most `prefetch` orders are taken beyond the one whose batch is asked for. Closing the
    generator ends its threads.
    """
    orders, row_bytes = iter(orders), reader.row_bytes
    if prefetch is None:
        first = list(islice(orders, 1))
        orders = chain(first, orders)
        prefetch = max(1, _PREFETCH_BYTES // max(1, row_bytes * sum(map(len, first))))
    threads = min(prefetch, THREADS) if threads is None else threads
    together = max(1, (prefetch + 1) // (threads + 1))
    groups = _groups(orders, together, max(1, GROUP_BYTES // row_bytes))

    def read_group(group: list[np.ndarray]) -> list[CachedRows | Exception]:
        return _read_together(reader, group)

    groups_ahead = (prefetch + 1) // together - 1
    with closing(ordered_map(read_group, groups, threads=threads, ahead=groups_ahead)) as results:
        for group in results:
            for batch in group:
                if isinstance(batch, Exception):
                    raise batch
                yield batch


def _groups(orders: Iterator[np.ndarray], most: int, most_rows: int) -> Iterator[list[np.ndarray]]:
    """Yield the orders in groups of 1, 2, 4, ... up to `most`, of not too many rows."""
    size = 1
    while group := list(islice(orders, size)):
        yield group
        rows = max(1, max(len(order) for order in group))
        size = max(1, min(2 * size, most, most_rows // rows))


def _read_together(reader: Reader, group: list[np.ndarray]) -> list[CachedRows | Exception]:
    """Return a batch for each order; where reading them together fails, each alone or its error."""
    if len(group) > 1:
        try:
            whole = reader.read(np.concatenate(group))
            ends = np.cumsum([len(order) for order in group])
            return [
                whole.part(slice(end - len(o), end)) for o, end in zip(group, ends, strict=True)
            ]
        except Exception:  # the second attempt shows whose batch it is
            pass
    return [_attempt(reader, order) for order in group]


def _attempt(reader: Reader, order: np.ndarray) -> CachedRows | Exception:
    try:
        return reader.read(order)
    except Exception as error:  # raised at its batch
        return error
