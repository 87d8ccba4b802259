"""The chunks of one manifest: found by arithmetic, fetched from the store, decoded, kept on disk.

Chunks are numbered over the whole cache as if every shard were full, so the number of a row's chunk
is arithmetic: no table of chunks or rows is ever held. A shard's own table of chunks is in its
index, which is fetched when the shard is first read.

`ChunkLoader` is all that is slow (fetching, decoding, writing to the disk) and runs on the threads
of `ChunkCache`.
"""

import threading
import time
from functools import cache, lru_cache
from typing import NamedTuple

import numpy as np

from kdscale.cache.commit.manifest import Manifest
from kdscale.cache.commit.plan import open_layout
from kdscale.cache.format.checked_read import read_chunk, read_index
from kdscale.cache.format.records import Chunk, Generation
from kdscale.cache.format.row_records import FixedRows
from kdscale.cache.format.shard_file import Layout, decode_chunk
from kdscale.cache.read.disk_cache import DiskCache
from kdscale.store import Store

_TABLES = 4096


class ChunkPlace(NamedTuple):
    """A chunk: the number of its generation, its shard in the cache, and its place in the shard."""

    generation: int
    shard: int
    chunk: int


class ChunkMap:
    """Map from rows to chunks, and from chunks to shards."""

    def __init__(self, generations: tuple[Generation, ...]) -> None:
        self._generations = generations
        self._first_rows = np.array([g.first_row for g in generations])
        self._shard_rows = np.array([g.sequences_per_shard for g in generations])
        self._chunk_rows = np.array([g.sequences_per_chunk for g in generations])
        self._chunks_per_shard = -(-self._shard_rows // self._chunk_rows)
        counts = self._chunks_per_shard * [len(g.shards) for g in generations]
        self._first_chunks = np.concatenate([[0], np.cumsum(counts)])

    def locate(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the chunk [B] and the place in it [B] of each of `rows` [B]."""
        at = np.searchsorted(self._first_rows, rows, side="right") - 1
        shard, inside = np.divmod(rows - self._first_rows[at], self._shard_rows[at])
        chunk, place = np.divmod(inside, self._chunk_rows[at])
        return self._first_chunks[at] + shard * self._chunks_per_shard[at] + chunk, place

    def place(self, number: int) -> ChunkPlace:
        """Return where chunk `number` lies."""
        at = int(np.searchsorted(self._first_chunks, number, side="right")) - 1
        after = number - int(self._first_chunks[at])
        shard, chunk = divmod(after, int(self._chunks_per_shard[at]))
        return ChunkPlace(at, self._generations[at].first_shard + shard, chunk)


class StoredChunks:
    """Chunks by number. Safe in many threads; not to be pickled or used after a fork."""

    def __init__(self, store: Store, manifest: Manifest) -> None:
        self._store = store
        self._manifest = manifest
        self._map = ChunkMap(manifest.generations)
        self._lock = threading.Lock()
        # Two threads may fetch the same small table; a prior takes megabytes and is loaded once.
        self._table = lru_cache(_TABLES)(self._fetch_table)
        self._layouts = cache(self._open_layout)

    def key(self, number: int) -> str:
        """Return a name for the chunk's bytes, the same in every manifest that has them."""
        place = self._map.place(number)
        return f"{self._manifest.shards[place.shard].digest}-{place.chunk:04d}"

    def fetch(self, number: int) -> bytes:
        """Return the chunk's stored bytes, verified; KdscaleError for a damaged object."""
        place = self._map.place(number)
        offset, length, rows, digest = self._table(place.shard)[place.chunk].tolist()
        chunk = Chunk(offset=offset, length=length, rows=rows, digest=f"{digest:016x}")
        return read_chunk(self._store, self._manifest.shards[place.shard], chunk)

    def decode(self, number: int, data: bytes) -> FixedRows:
        """Return the rows in what `fetch` gave."""
        with self._lock:
            layout = self._layouts(self._map.place(number).generation)
        return decode_chunk(data, layout)

    def _open_layout(self, generation: int) -> Layout:
        manifest = self._manifest
        return open_layout(self._store, manifest.identity, manifest.generations[generation])

    def _fetch_table(self, shard: int) -> np.ndarray:
        """Return the shard's chunks, [chunks, 4] uint64.

        As an object a chunk takes a thousand bytes.
        """
        chunks = read_index(self._store, self._manifest.shards[shard]).chunks
        entries = [(c.offset, c.length, c.rows, int(c.digest, 16)) for c in chunks]
        return np.array(entries, np.uint64)


class ChunkLoader:
    """Chunks by number, through the disk where there is one; safe in many threads."""

    def __init__(self, chunks: StoredChunks, disk: DiskCache | None) -> None:
        self._chunks = chunks
        self._disk = disk
        self._lock = threading.Lock()
        self.decode_seconds = 0.0
        """Processor time spent decoding, over all threads."""

    def load(self, number: int) -> tuple[FixedRows, int]:
        """Return a chunk and the bytes fetched from the store for it: 0 where the disk had it.

        A chunk that was written to the disk is used from there at once, so that its memory is the
        page cache's. Raises what fetching and decoding raise.
        """
        disk = self._disk
        if disk is None:
            return self._load_from_store(number)
        key = self._chunks.key(number)
        if (kept := disk.get(key)) is not None:
            return kept, 0
        with disk.exclusive(key):
            # Another process may have fetched it while this one waited.
            if (kept := disk.get(key)) is not None:
                return kept, 0
            chunk, fetched = self._load_from_store(number)
            disk.put(key, chunk)
        return disk.get(key) or chunk, fetched

    def _load_from_store(self, number: int) -> tuple[FixedRows, int]:
        data = self._chunks.fetch(number)
        started = time.thread_time()
        chunk = self._chunks.decode(number, data)
        with self._lock:
            self.decode_seconds += time.thread_time() - started
        return chunk, len(data)
