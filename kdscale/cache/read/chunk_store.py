"""The chunks of one manifest as the store has them: found, fetched, verified, decoded.

Chunks are numbered over the whole cache as if every shard were full, so that the number of a row's
chunk is arithmetic: no table of chunks or rows is ever held. A shard's own table of chunks stands in
its index, which is fetched when the shard is first met.
"""

import threading
from collections import OrderedDict
from dataclasses import dataclass

import numpy as np

from kdscale.cache.commit.manifest import Manifest
from kdscale.cache.commit.plan import open_layout
from kdscale.cache.format.checked_read import read_chunk, read_index
from kdscale.cache.format.records import Chunk, Generation, Shard
from kdscale.cache.format.row_records import FixedRows
from kdscale.cache.format.shard_file import Layout, decode_chunk
from kdscale.store import Store

_TABLES = 4096

# A chunk takes 32 bytes here and a thousand as an object.
_ENTRY = np.dtype([("offset", "<u8"), ("length", "<u8"), ("rows", "<u8"), ("digest", "<u8")])


@dataclass(frozen=True)
class ChunkPlace:
    """A chunk: the number of its generation, its shard in the cache, and its place in the shard."""

    generation: int
    shard: int
    chunk: int


class ChunkMap:
    """Which chunk a row is in."""

    def __init__(self, generations: tuple[Generation, ...]) -> None:
        self._generations = generations
        self._first_rows = np.array([s.first_row for s in generations])
        self._sizes = np.array(
            [(s.sequences_per_shard, s.sequences_per_chunk) for s in generations]
        )
        self._chunks_per_shard = -(-self._sizes[:, 0] // self._sizes[:, 1])
        counts = self._chunks_per_shard * [len(s.shards) for s in generations]
        self._first_chunks = np.concatenate([[0], np.cumsum(counts)])

    def locate(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The chunk [B] and the place in it [B] of each of `rows` [B]."""
        generation = np.searchsorted(self._first_rows, rows, side="right") - 1
        sizes = self._sizes[generation]
        shard, at = np.divmod(rows - self._first_rows[generation], sizes[:, 0])
        chunk, place = np.divmod(at, sizes[:, 1])
        return self._first_chunks[generation] + shard * self._chunks_per_shard[
            generation
        ] + chunk, place

    def place(self, number: int) -> ChunkPlace:
        """Where chunk `number` lies."""
        generation = int(np.searchsorted(self._first_chunks, number, side="right")) - 1
        after = number - int(self._first_chunks[generation])
        shard, chunk = divmod(after, int(self._chunks_per_shard[generation]))
        return ChunkPlace(generation, self._generations[generation].first_shard + shard, chunk)


class StoredChunks:
    """Chunks by number. Safe in many threads; not to be pickled or used after a fork."""

    def __init__(self, store: Store, manifest: Manifest) -> None:
        self._store = store
        self._manifest = manifest
        self._map = ChunkMap(manifest.generations)
        self._layouts: dict[int, Layout] = {}
        self._tables: OrderedDict[int, np.ndarray] = OrderedDict()
        self._lock = threading.Lock()

    def key(self, number: int) -> str:
        """A name for the chunk's bytes, the same in every manifest that has them."""
        place = self._map.place(number)
        return f"{self._manifest.shards[place.shard].digest}-{place.chunk:04d}"

    def fetch(self, number: int) -> bytes:
        """The chunk's stored bytes, verified; KdscaleError where its object is damaged."""
        place = self._map.place(number)
        shard = self._manifest.shards[place.shard]
        entry = self._table(shard)[place.chunk]
        return read_chunk(self._store, shard, _as_chunk(entry))

    def decode(self, number: int, data: bytes) -> FixedRows:
        """The rows in what `fetch` gave."""
        return decode_chunk(data, self._layout(self._map.place(number).generation))

    def _layout(self, generation: int) -> Layout:
        """Opened once: a prior may take megabytes."""
        with self._lock:
            if generation not in self._layouts:
                self._layouts[generation] = open_layout(
                    self._store, self._manifest.identity, self._manifest.generations[generation]
                )
            return self._layouts[generation]

    def _table(self, shard: Shard) -> np.ndarray:
        """The shard's chunks, [chunks] of `_ENTRY`. Two threads may fetch the same small table."""
        with self._lock:
            if shard.shard in self._tables:
                self._tables.move_to_end(shard.shard)
                return self._tables[shard.shard]
        chunks = read_index(self._store, shard).chunks
        entries = [(b.offset, b.length, b.rows, int(b.digest, 16)) for b in chunks]
        with self._lock:
            self._tables[shard.shard] = np.array(entries, _ENTRY)
            if len(self._tables) > _TABLES:
                self._tables.popitem(last=False)
            return self._tables[shard.shard]


def _as_chunk(entry: np.void) -> Chunk:
    return Chunk(
        offset=int(entry["offset"]),
        length=int(entry["length"]),
        rows=int(entry["rows"]),
        digest=f"{int(entry['digest']):016x}",
    )
