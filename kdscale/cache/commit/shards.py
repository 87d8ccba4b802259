"""The shards of a manifest as one table: 64 bytes a shard in memory, whatever a shard holds.

A cache of 10^12 tokens has a quarter of a million shards. As a table of fixed-width columns they
are one small object in the store, and an epoch's readers never hold them as a quarter of a million
Python objects.
"""

from collections.abc import Iterable, Iterator

import numpy as np
import pyarrow as pa

from kdscale.cache.format.columns import as_binary, from_binary, from_numbers
from kdscale.cache.format.records import Shard

_DTYPE = np.dtype(
    [
        ("digest", "u1", 16),
        ("length", "<u8"),
        ("index_digest", "u1", 16),
        ("index_length", "<u8"),
        ("rows", "<u8"),
        ("targets", "<u8"),
    ]
)


class ShardTable:
    """Shards 0 .. len - 1."""

    def __init__(self, table: np.ndarray) -> None:
        assert table.dtype == _DTYPE
        self._table = table

    def __len__(self) -> int:
        return len(self._table)

    def __getitem__(self, number: int) -> Shard:
        """Shard `number`; IndexError where there is none."""
        if not 0 <= number < len(self):
            raise IndexError(f"shard {number} of {len(self)}")
        entry = self._table[number]
        return Shard(
            shard=number,
            digest=entry["digest"].tobytes().hex(),
            length=int(entry["length"]),
            index_digest=entry["index_digest"].tobytes().hex(),
            index_length=int(entry["index_length"]),
            rows=int(entry["rows"]),
            targets=int(entry["targets"]),
        )

    def __iter__(self) -> Iterator[Shard]:
        return (self[number] for number in range(len(self)))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ShardTable) and np.array_equal(self._table, other._table)

    __hash__ = None  # type: ignore[assignment]  # it compares by content

    @property
    def rows(self) -> np.ndarray:
        """[shards] uint64."""
        return self._table["rows"]

    @property
    def targets(self) -> int:
        """Targets in all shards."""
        return int(self._table["targets"].sum())

    @property
    def nbytes(self) -> int:
        """Bytes of all objects in the store."""
        return int(self._table["length"].sum() + self._table["index_length"].sum())


def make_table(shards: Iterable[Shard], count: int) -> ShardTable:
    """Return the table of `count` shards that come as 0, 1, 2, ..."""
    table = np.empty(count, _DTYPE)
    filled = 0
    for number, shard in enumerate(shards):
        assert shard.shard == number
        table[number] = (
            np.frombuffer(bytes.fromhex(shard.digest), np.uint8),
            shard.length,
            np.frombuffer(bytes.fromhex(shard.index_digest), np.uint8),
            shard.index_length,
            shard.rows,
            shard.targets,
        )
        filled += 1
    assert filled == count
    return ShardTable(table)


def encode_table(table: ShardTable) -> bytes:
    """Encode as an Arrow IPC file with a column a field; equal tables give equal bytes."""
    entries = table._table
    columns = {
        name: as_binary(entries[name])
        if name.endswith("digest")
        else pa.array(entries[name], pa.uint64())
        for name in _DTYPE.names or ()
    }
    batch = pa.RecordBatch.from_pydict(columns)
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, batch.schema) as writer:
        writer.write_batch(batch)
    return sink.getvalue().to_pybytes()


def decode_table(data: bytes) -> ShardTable:
    """Invert `encode_table`."""
    batch = pa.ipc.open_file(pa.py_buffer(data)).get_batch(0)
    table = np.empty(len(batch), _DTYPE)
    for name in _DTYPE.names or ():
        column = batch[name]
        if name.endswith("digest"):
            table[name] = from_binary(column)
        else:
            table[name] = from_numbers(column)
    return ShardTable(table)
