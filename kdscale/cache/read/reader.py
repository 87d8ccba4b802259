"""The reader of a cache: any rows, in any order, at the price of a chunk each.

It pins one manifest, so its rows never change, and it knows nothing of epochs or ranks: the order
comes from outside, as indices. Each chunk is verified before it is decoded. Where a row lies is
arithmetic; only the tables of chunks, which are in the shards' indexes, are fetched when needed.
"""

import ctypes
import os
import weakref
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import pairwise
from typing import Any

import numpy as np

from kdscale.cache.codecs import Codec, open_codec
from kdscale.cache.commit.manifest import Manifest, load_manifest
from kdscale.cache.format.checked_read import read_index
from kdscale.cache.format.records import Shard
from kdscale.cache.format.row_records import FixedRows, row_type, view_rows
from kdscale.cache.jit import compiled
from kdscale.cache.read.chunk_cache import ChunkCache
from kdscale.cache.read.chunk_store import ChunkLoader, ChunkMap, StoredChunks
from kdscale.cache.read.disk_cache import DiskCache
from kdscale.cache.read.loader import GROUP_BYTES, THREADS
from kdscale.cache.rows import RowStats
from kdscale.cache.spec import Identity, check_cache_spec, has_labels
from kdscale.store import Store

_INDEX_THREADS = 16
# Memory kept for later reads: what one batch of each thread takes.
_KEPT_BATCHES = THREADS


@dataclass(frozen=True)
class CacheSource:
    """One of a student's caches: its first `generations`, each row `weight` times an epoch.

    Generations appended later are not read; None reads all that there are.
    """

    store: Store
    generations: int | None
    weight: float = 1.0


class CacheReader:
    """Rows 0 .. len - 1 of a published cache, in the order of its plans.

    expected: fields of the identity that the student depends on; KdscaleError where one differs.
    version, generations: which manifest, see `load_manifest`. memory_bytes: for decoded chunks;
    disk: where the machine keeps more of them. Safe in many threads; picklable, and usable after a
    fork.
    """

    def __init__(
        self,
        store: Store,
        *,
        expected: Identity | None = None,
        version: int | None = None,
        generations: int | None = None,
        memory_bytes: int = 512 << 20,
        disk: DiskCache | None = None,
    ) -> None:
        manifest = load_manifest(store, version, generations)
        check_cache_spec(manifest.identity, expected or {})
        self._open(store, manifest, memory_bytes, disk)

    def _open(
        self, store: Store, manifest: Manifest, memory_bytes: int, disk: DiskCache | None
    ) -> None:
        self.manifest = manifest
        self.identity: Identity = manifest.identity
        self.codec: Codec = open_codec(manifest.identity["codec"])
        self._store = store
        self._memory_bytes = memory_bytes
        self._disk = disk
        self._row_type = row_type(
            self.seq_len, self.codec.bytes_per_position, has_labels(self.identity)
        )
        self._map = ChunkMap(manifest.generations)
        self._memory = BufferPool(GROUP_BYTES, _KEPT_BATCHES)
        self._start_cache()

    def _start_cache(self) -> None:
        disk = self._disk if self._needs_disk else None
        self._source = ChunkLoader(StoredChunks(self._store, self.manifest), disk)
        self._cache = ChunkCache(self._source.load, self._memory_bytes)
        self._process = os.getpid()

    @property
    def _needs_disk(self) -> bool:
        """Not for chunks that lie on that disk already and need no unpacking."""
        path = self._store.local_path()
        is_packed = any(generation.prior is not None for generation in self.manifest.generations)
        return self._disk is not None and (
            is_packed or path is None or not self._disk.is_beside(path)
        )

    def __getstate__(self) -> dict[str, Any]:
        return {
            "store": self._store,
            "manifest": self.manifest,
            "memory_bytes": self._memory_bytes,
            "disk": self._disk,
        }

    def __setstate__(self, state: dict[str, Any]) -> None:
        self._open(**state)

    def __len__(self) -> int:
        return self.manifest.rows

    @property
    def row_bytes(self) -> int:
        """Bytes of a decoded row."""
        return self._row_type.itemsize

    @property
    def seq_len(self) -> int:
        """Positions in a row."""
        return int(self.identity["seq_len"])

    @property
    def sequences_per_chunk(self) -> int:
        """Rows that are fetched together, in the first generation."""
        return self.manifest.generations[0].sequences_per_chunk

    @cached_property
    def statistics(self) -> RowStats:
        """Statistics of all rows, [R], from the small index objects alone: 28 bytes a row."""
        with ThreadPoolExecutor(_INDEX_THREADS) as pool:
            parts = list(pool.map(partial(_load_stats, self._store), self.manifest.shards))
        return RowStats(
            *(
                np.concatenate([getattr(part, name) for part in parts])
                for name in ("sample_ids", "entropy", "nll", "length")
            )
        )

    @property
    def metrics(self) -> dict[str, float]:
        """Return the counts of `ChunkCache.metrics` and processor seconds spent decoding.

        Since this process opened the reader.
        """
        return self._chunks.metrics | {
            "decode_seconds": self._source.decode_seconds,
        }

    def read(self, indices: np.ndarray) -> FixedRows:
        """Return a copy of the rows at `indices` ([B] integers, repeats allowed), in that order.

        IndexError for an index outside 0 .. len - 1; KdscaleError for damaged data.
        """
        if len(indices) and not 0 <= np.min(indices) <= np.max(indices) < len(self):
            raise IndexError(f"rows {np.min(indices)} .. {np.max(indices)} of {len(self)}")
        numbers, places = self._map.locate(np.asarray(indices))
        memory = self._memory.take(len(indices) * self.row_bytes)
        records = memory.view(np.dtype((np.void, self.row_bytes)))
        words = _as_words(records)
        # Places in the batch, chunk by chunk.
        by_chunk = np.argsort(numbers, kind="stable")
        chunks, starts = np.unique(numbers[by_chunk], return_index=True)
        spans = pairwise([*starts.tolist(), len(numbers)])
        stream = self._chunks.stream(chunks.tolist())
        for (start, end), (_, chunk) in zip(spans, stream, strict=True):
            wanted = by_chunk[start:end]
            _copy_rows(words, wanted, _as_words(chunk.records), places[wanted])
        return view_rows(records, self._row_type)

    @property
    def _chunks(self) -> ChunkCache:
        """This process's chunks: threads do not survive a fork, and a lock may be held in it."""
        if self._process != os.getpid():
            self._start_cache()
        return self._cache


def _as_words(records: np.ndarray) -> np.ndarray:
    """[B, words] uint64: the bytes of `records` ([B] void of whole cache lines), not copied."""
    return records.view(np.uint64).reshape(len(records), records.itemsize // 8)


@compiled
def _copy_rows(out: np.ndarray, to: np.ndarray, rows: np.ndarray, at: np.ndarray) -> None:
    """out[to] = rows[at], for words [., W] of rows: NumPy would gather them and then scatter."""
    for place in range(len(to)):
        target, source = to[place], at[place]
        for word in range(out.shape[1]):
            out[target, word] = rows[source, word]


def _load_stats(store: Store, shard: Shard) -> RowStats:
    return read_index(store, shard).stats


class BufferPool:
    """Arrays of up to `nbytes` bytes, used again when their last view goes.

    The kernel maps fresh memory page by page and clears it, which takes longer than copying
    rows into it. Of arrays that came back the last `most` are kept; larger ones are not. Safe
    in many threads.
    """

    def __init__(self, nbytes: int, most: int) -> None:
        self._nbytes = nbytes
        self._free: deque[np.ndarray] = deque(maxlen=most)

    def take(self, nbytes: int) -> np.ndarray:
        """Return [nbytes] uint8 of any content.

        Its memory comes back when the last array or tensor that is a view of it goes.
        """
        if nbytes > self._nbytes:
            return np.empty(nbytes, np.uint8)
        try:
            memory = self._free.pop()
        except IndexError:
            # The kernel gives only what is touched.
            memory = np.empty(self._nbytes, np.uint8)
        # Views of an array refer to what owns its memory: to this, which can tell when it goes.
        loan = (ctypes.c_char * nbytes).from_buffer(memory.data)
        weakref.finalize(loan, self._free.append, memory).atexit = False
        return np.frombuffer(memoryview(loan), np.uint8)
