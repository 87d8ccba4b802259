"""The blocks of one manifest as the store has them: found, fetched, verified, decoded.

Blocks are numbered over the whole cache as if every unit were full, so that the number of a row's
block is arithmetic: no table of blocks or rows is ever held. A unit's own table of blocks stands in
its index, which is fetched when the unit is first met.
"""

import threading
from collections import OrderedDict
from dataclasses import dataclass

import numpy as np

from kdscale.cache.commit.manifest import Manifest
from kdscale.cache.commit.plan import open_layout
from kdscale.cache.format.checked_read import read_block, read_index
from kdscale.cache.format.records import Block, Segment, Unit
from kdscale.cache.format.row_records import FixedRows
from kdscale.cache.format.shard_file import Layout, decode_block
from kdscale.store import Store

_TABLES = 4096

# A block takes 32 bytes here and a thousand as an object.
_ENTRY = np.dtype([("offset", "<u8"), ("length", "<u8"), ("rows", "<u8"), ("digest", "<u8")])


@dataclass(frozen=True)
class BlockPlace:
    """A block: the number of its segment, its unit in the cache, and its place in the unit."""

    segment: int
    unit: int
    block: int


class BlockMap:
    """Which block a row is in."""

    def __init__(self, segments: tuple[Segment, ...]) -> None:
        self._segments = segments
        self._first_rows = np.array([s.first_row for s in segments])
        self._sizes = np.array([(s.sequences_per_shard, s.sequences_per_chunk) for s in segments])
        self._blocks_per_unit = -(-self._sizes[:, 0] // self._sizes[:, 1])
        counts = self._blocks_per_unit * [len(s.units) for s in segments]
        self._first_blocks = np.concatenate([[0], np.cumsum(counts)])

    def locate(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The block [B] and the place in it [B] of each of `rows` [B]."""
        segment = np.searchsorted(self._first_rows, rows, side="right") - 1
        sizes = self._sizes[segment]
        unit, at = np.divmod(rows - self._first_rows[segment], sizes[:, 0])
        block, place = np.divmod(at, sizes[:, 1])
        return self._first_blocks[segment] + unit * self._blocks_per_unit[segment] + block, place

    def place(self, number: int) -> BlockPlace:
        """Where block `number` lies."""
        segment = int(np.searchsorted(self._first_blocks, number, side="right")) - 1
        after = number - int(self._first_blocks[segment])
        unit, block = divmod(after, int(self._blocks_per_unit[segment]))
        return BlockPlace(segment, self._segments[segment].first_unit + unit, block)


class StoredBlocks:
    """Blocks by number. Safe in many threads; not to be pickled or used after a fork."""

    def __init__(self, store: Store, manifest: Manifest) -> None:
        self._store = store
        self._manifest = manifest
        self._map = BlockMap(manifest.segments)
        self._layouts: dict[int, Layout] = {}
        self._tables: OrderedDict[int, np.ndarray] = OrderedDict()
        self._lock = threading.Lock()

    def key(self, number: int) -> str:
        """A name for the block's bytes, the same in every manifest that has them."""
        place = self._map.place(number)
        return f"{self._manifest.units[place.unit].digest}-{place.block:04d}"

    def fetch(self, number: int) -> bytes:
        """The block's stored bytes, verified; KdscaleError where its object is damaged."""
        place = self._map.place(number)
        unit = self._manifest.units[place.unit]
        entry = self._table(unit)[place.block]
        return read_block(self._store, unit, _as_block(entry))

    def decode(self, number: int, data: bytes) -> FixedRows:
        """The rows in what `fetch` gave."""
        return decode_block(data, self._layout(self._map.place(number).segment))

    def _layout(self, segment: int) -> Layout:
        """Opened once: a prior may take megabytes."""
        with self._lock:
            if segment not in self._layouts:
                self._layouts[segment] = open_layout(
                    self._store, self._manifest.identity, self._manifest.segments[segment]
                )
            return self._layouts[segment]

    def _table(self, unit: Unit) -> np.ndarray:
        """The unit's blocks, [blocks] of `_ENTRY`. Two threads may fetch the same small table."""
        with self._lock:
            if unit.unit in self._tables:
                self._tables.move_to_end(unit.unit)
                return self._tables[unit.unit]
        blocks = read_index(self._store, unit).blocks
        entries = [(b.offset, b.length, b.rows, int(b.digest, 16)) for b in blocks]
        with self._lock:
            self._tables[unit.unit] = np.array(entries, _ENTRY)
            if len(self._tables) > _TABLES:
                self._tables.popitem(last=False)
            return self._tables[unit.unit]


def _as_block(entry: np.void) -> Block:
    return Block(
        offset=int(entry["offset"]),
        length=int(entry["length"]),
        rows=int(entry["rows"]),
        digest=f"{int(entry['digest']):016x}",
    )
