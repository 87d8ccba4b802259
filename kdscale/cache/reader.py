"""The reader of a cache: any rows, in any order, at the price of a block each.

It pins one manifest, so its rows never change, and it knows nothing of epochs or ranks: the order
comes from outside, as indices. Each block is verified before it is decoded.
"""

import os
import time
from collections import deque
from collections.abc import Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cached_property, partial
from typing import Any

import numpy as np

from kdscale.cache.blocks import BlockCache
from kdscale.cache.codecs import Codec, open_codec
from kdscale.cache.container import CachedRows, RowStats, decode_block, decode_index
from kdscale.cache.identity import Identity, check_identity
from kdscale.cache.manifest import load_manifest
from kdscale.cache.records import Block, Commit, Manifest
from kdscale.cache.verified import read_block, read_index
from kdscale.store import Store
from kdscale.types import Rows

_INDEX_THREADS = 16
_BATCH_THREADS = 4


class CacheReader:
    """Rows 0 .. len - 1 of a published cache, in the order of its plan.

    expected: fields of the identity that the student depends on; KdscaleError where one differs.
    memory_bytes: for decoded blocks. Safe in many threads; picklable, and usable after a fork.
    """

    def __init__(
        self, store: Store, *, expected: Identity | None = None, memory_bytes: int = 512 << 20
    ) -> None:
        manifest = load_manifest(store)
        check_identity(manifest.identity, expected or {})
        self._open(store, manifest, memory_bytes)

    def _open(self, store: Store, manifest: Manifest, memory_bytes: int) -> None:
        self.manifest = manifest
        self.identity: Identity = manifest.identity
        self.codec: Codec = open_codec(manifest.identity["codec"])
        self._store = store
        self._memory_bytes = memory_bytes
        self._row_length = int(self.identity["row_length"])
        self._table = [(unit, block) for unit in manifest.units for block in unit.blocks]
        ends = np.cumsum([block.rows for _, block in self._table], dtype=np.int64)
        self._first_rows = np.concatenate([[0], ends])
        self._seconds_waited = 0.0
        self._start_cache()

    def _start_cache(self) -> None:
        load = partial(
            _load_block,
            self._store,
            self._table,
            self._row_length,
            self.codec.bytes_per_position,
        )
        self._cache = BlockCache(load, self._memory_bytes)
        self._process = os.getpid()

    def __getstate__(self) -> dict[str, Any]:
        return {
            "store": self._store,
            "manifest": self.manifest,
            "memory_bytes": self._memory_bytes,
        }

    def __setstate__(self, state: dict[str, Any]) -> None:
        self._open(**state)

    def __len__(self) -> int:
        return int(self._first_rows[-1])

    @cached_property
    def statistics(self) -> RowStats:
        """Statistics of all rows, [R], from the small index objects alone."""
        with ThreadPoolExecutor(_INDEX_THREADS) as pool:
            read = partial(_load_index, self._store)
            parts = list(pool.map(read, self.manifest.units))
        return RowStats(
            *(
                np.concatenate([getattr(part, name) for part in parts])
                for name in ("sample_ids", "entropy", "nll", "length")
            )
        )

    @property
    def metrics(self) -> dict[str, float]:
        """Since this process opened the reader: blocks and bytes fetched, blocks found in memory,
        and seconds that the consumer of `batches` waited."""
        return {
            "blocks_fetched": self._blocks.fetched,
            "bytes_fetched": self._blocks.fetched_bytes,
            "block_hits": self._blocks.hits,
            "seconds_waited": self._seconds_waited,
        }

    def read(self, indices: np.ndarray) -> CachedRows:
        """The rows at `indices` ([B] integers, repeats allowed), in that order, as a copy.

        IndexError for an index outside 0 .. len - 1; KdscaleError for damaged data.
        """
        if len(indices) and not 0 <= np.min(indices) <= np.max(indices) < len(self):
            raise IndexError(f"rows {np.min(indices)} .. {np.max(indices)} of {len(self)}")
        numbers = np.searchsorted(self._first_rows, indices, side="right") - 1
        out = self._empty(len(indices))
        for number, block in self._blocks.stream(np.unique(numbers).tolist()):
            wanted = np.flatnonzero(numbers == number)
            _copy_rows(out, wanted, block, indices[wanted] - self._first_rows[number])
        return out

    def batches(
        self, orders: Iterable[np.ndarray], ahead: int
    ) -> Generator[CachedRows, None, None]:
        """`read` of each of `orders`, with the next `ahead` batches read in the background.

        An error surfaces at the batch that it belongs to. Closing the iterator ends its threads.
        """
        pool = ThreadPoolExecutor(min(ahead, _BATCH_THREADS), thread_name_prefix="cache-batch")
        pending: deque[Future[CachedRows]] = deque()
        try:
            for order in orders:
                pending.append(pool.submit(self.read, order))
                if len(pending) > ahead:
                    yield self._await(pending.popleft())
            while pending:
                yield self._await(pending.popleft())
        finally:
            pool.shutdown(wait=True, cancel_futures=True)

    def _await(self, batch: Future[CachedRows]) -> CachedRows:
        started = time.monotonic()
        try:
            return batch.result()
        finally:
            self._seconds_waited += time.monotonic() - started

    @property
    def _blocks(self) -> BlockCache:
        """This process's blocks: threads do not survive a fork, and a lock may be held in it."""
        if self._process != os.getpid():
            self._start_cache()
        return self._cache

    def _empty(self, count: int) -> CachedRows:
        """Arrays for `count` rows."""
        shape = (count, self._row_length)
        rows = Rows(
            sample_ids=np.empty((count, 16), np.uint8),
            input_ids=np.empty(shape, np.int32),
            segment_ids=np.empty(shape, np.int32),
            loss_mask=np.empty(shape, np.bool_),
            byte_counts=np.empty(count, np.float64),
        )
        payload = np.empty((*shape, self.codec.bytes_per_position), np.uint8)
        return CachedRows(rows, payload, np.empty(count, np.float32), np.empty(count, np.float32))


def _load_block(
    store: Store,
    table: list[tuple[Commit, Block]],
    row_length: int,
    bytes_per_position: int,
    number: int,
) -> tuple[CachedRows, int]:
    """Block `number` and its size in the store. No method, so that blocks never hold the reader."""
    unit, block = table[number]
    data = read_block(store, unit, block)
    return decode_block(data, row_length, bytes_per_position), len(data)


def _load_index(store: Store, unit: Commit) -> RowStats:
    return decode_index(read_index(store, unit))


def _copy_rows(out: CachedRows, to: np.ndarray, block: CachedRows, at: np.ndarray) -> None:
    """Rows `at` of the block into places `to` of the batch."""
    out.rows.sample_ids[to] = block.rows.sample_ids[at]
    out.rows.input_ids[to] = block.rows.input_ids[at]
    out.rows.segment_ids[to] = block.rows.segment_ids[at]
    out.rows.loss_mask[to] = block.rows.loss_mask[at]
    out.rows.byte_counts[to] = block.rows.byte_counts[at]
    out.payload[to] = block.payload[at]
    out.entropy[to] = block.entropy[at]
    out.nll[to] = block.nll[at]
