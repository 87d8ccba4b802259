"""One unit as an Arrow IPC file: one record batch a block, columns of fixed width.

Any Arrow reader opens the whole object. Ours fetches a block with one range read and decodes it
with the schema alone, which follows from row length and codec. Arrow compresses each column with
LZ4: the payload is too dense to shrink, tokens and masks take 2 bytes a position instead of 9, and
one core still verifies and decodes 9 GB/s. zstd would save 2 % more at half the speed.

Checksums are over the bytes as stored: xxh3_64 of a block, xxh3_128 of an object.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import pyarrow as pa
import xxhash

from kdscale.cache.records import Block
from kdscale.types import Rows

# The magic word at the start of a file, with its padding.
_MAGIC_BYTES = 8


@dataclass(frozen=True)
class RowStats:
    """What a curriculum needs to know of rows, without their payload."""

    sample_ids: np.ndarray  # [R, 16] uint8
    entropy: np.ndarray  # [R] float32: mean entropy of the teacher over the row's targets, nats
    nll: np.ndarray  # [R] float32: mean negative log-likelihood of the labels, nats
    length: np.ndarray  # [R] int32: targets in the row

    def __len__(self) -> int:
        return len(self.length)


@dataclass(frozen=True)
class CachedRows:
    """Rows with the encoded distribution of each of their positions."""

    rows: Rows
    payload: np.ndarray  # [B, T, bytes_per_position] uint8
    entropy: np.ndarray  # [B] float32, nats
    nll: np.ndarray  # [B] float32, nats

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def nbytes(self) -> int:
        """Bytes in memory."""
        rows = self.rows
        arrays = (rows.sample_ids, rows.input_ids, rows.segment_ids, rows.loss_mask)
        more = (rows.byte_counts, self.payload, self.entropy, self.nll)
        return sum(array.nbytes for array in arrays + more)


@dataclass(frozen=True)
class UnitObject:
    """An encoded unit, ready for one put."""

    data: bytes
    digest: str
    blocks: tuple[Block, ...]


def object_digest(data: bytes) -> str:
    """xxh3_128 in hex."""
    return xxhash.xxh3_128_hexdigest(data)


def block_digest(data: bytes | memoryview) -> str:
    """xxh3_64 in hex."""
    return xxhash.xxh3_64_hexdigest(data)


def encode_unit(
    rows: Rows,
    payload: np.ndarray,
    stats: RowStats,
    metadata: Mapping[str, str],
    rows_per_block: int,
) -> UnitObject:
    """Rows, their payload ([R, T, bytes a position] or [R, T * bytes a position] uint8) and their
    statistics as one object; `metadata` goes to the schema. Equal input gives equal bytes."""
    count, row_length = rows.input_ids.shape
    flat = np.ascontiguousarray(payload).reshape(count, -1)
    assert flat.dtype == np.uint8
    assert flat.shape[1] % row_length == 0
    assert np.array_equal(stats.sample_ids, rows.sample_ids)
    schema = _schema(row_length, flat.shape[1] // row_length).with_metadata(dict(metadata))
    columns = [
        _binary(rows.sample_ids),
        _lists(rows.input_ids.astype(np.int32)),
        _lists(rows.segment_ids.astype(np.int32)),
        _lists(rows.loss_mask.astype(np.uint8)),
        pa.array(rows.byte_counts, pa.float64()),
        _binary(flat),
        *_stats_columns(stats),
    ]
    batches = pa.Table.from_arrays(columns, schema=schema).to_batches(rows_per_block)
    sink = pa.BufferOutputStream()
    options = pa.ipc.IpcWriteOptions(compression="lz4", use_threads=False)
    with pa.ipc.new_file(sink, schema, options=options) as writer:
        for batch in batches:
            writer.write_batch(batch)
    data = sink.getvalue().to_pybytes()
    return UnitObject(data, object_digest(data), _blocks(data, [len(batch) for batch in batches]))


def decode_block(data: bytes, row_length: int, bytes_per_position: int) -> CachedRows:
    """The rows of one block, from the bytes that its offset and length name. Verify them first."""
    schema = _schema(row_length, bytes_per_position)
    message = pa.ipc.read_message(pa.py_buffer(data))
    batch = pa.ipc.read_record_batch(message, schema)
    rows = Rows(
        sample_ids=_from_binary(batch["sample_id"]),
        input_ids=_from_lists(batch["input_ids"]),
        segment_ids=_from_lists(batch["segment_ids"]),
        loss_mask=_from_lists(batch["loss_mask"]).view(np.bool_),
        byte_counts=batch["byte_count"].to_numpy(),
    )
    payload = _from_binary(batch["payload"]).reshape(len(batch), row_length, bytes_per_position)
    return CachedRows(rows, payload, batch["entropy"].to_numpy(), batch["nll"].to_numpy())


def encode_index(stats: RowStats) -> bytes:
    """Row statistics alone, as a small Arrow IPC file."""
    columns = [_binary(stats.sample_ids), *_stats_columns(stats)]
    table = pa.Table.from_arrays(columns, schema=pa.schema([_SAMPLE_ID, *_STATS]))
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)
    return sink.getvalue().to_pybytes()


def decode_index(data: bytes) -> RowStats:
    """The inverse of `encode_index`."""
    batch = pa.ipc.open_file(pa.py_buffer(data)).get_batch(0)
    statistics = (batch[field.name].to_numpy() for field in _STATS)
    return RowStats(_from_binary(batch["sample_id"]), *statistics)


_SAMPLE_ID = pa.field("sample_id", pa.binary(16), nullable=False)
_STATS: list["pa.Field[Any]"] = [
    pa.field("entropy", pa.float32(), nullable=False),
    pa.field("nll", pa.float32(), nullable=False),
    pa.field("length", pa.int32(), nullable=False),
]


@cache
def _schema(row_length: int, bytes_per_position: int) -> pa.Schema:
    """The columns of a data object."""
    return pa.schema(
        [
            _SAMPLE_ID,
            pa.field("input_ids", pa.list_(pa.int32(), row_length), nullable=False),
            pa.field("segment_ids", pa.list_(pa.int32(), row_length), nullable=False),
            pa.field("loss_mask", pa.list_(pa.uint8(), row_length), nullable=False),
            pa.field("byte_count", pa.float64(), nullable=False),
            pa.field("payload", pa.binary(row_length * bytes_per_position), nullable=False),
            *_STATS,
        ]
    )


def _blocks(data: bytes, sizes: list[int]) -> tuple[Block, ...]:
    """Where each record batch lies in a file: the messages behind its magic word and its schema."""
    source = pa.BufferReader(data)
    source.seek(_MAGIC_BYTES)
    pa.ipc.read_message(source)
    blocks = []
    for rows in sizes:
        offset = source.tell()
        pa.ipc.read_message(source)
        length = source.tell() - offset
        digest = block_digest(memoryview(data)[offset : offset + length])
        blocks.append(Block(offset=offset, length=length, rows=rows, digest=digest))
    return tuple(blocks)


def _stats_columns(stats: RowStats) -> list["pa.Array[Any]"]:
    arrays = (stats.entropy, stats.nll, stats.length)
    return [pa.array(array, field.type) for array, field in zip(arrays, _STATS, strict=True)]


def _binary(values: np.ndarray) -> "pa.Array[Any]":
    """[R, N] uint8 -> R fixed-size binaries of N bytes."""
    buffer = pa.py_buffer(np.ascontiguousarray(values).data)
    kind = pa.binary(values.shape[1])
    return pa.FixedSizeBinaryArray.from_buffers(kind, len(values), [None, buffer])


def _from_binary(column: "pa.Array[Any]") -> np.ndarray:
    """The inverse of `_binary`, without a copy."""
    width = column.type.byte_width
    buffer = column.buffers()[1]
    assert buffer is not None
    count = len(column) * width
    values = np.frombuffer(memoryview(buffer), np.uint8, count, column.offset * width)
    return values.reshape(-1, width)


def _lists(values: np.ndarray) -> "pa.Array[Any]":
    """[R, T] numbers -> R fixed-size lists of T."""
    return pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1)), values.shape[1])


def _from_lists(column: "pa.Array[Any]") -> np.ndarray:
    """The inverse of `_lists`, without a copy."""
    assert isinstance(column, pa.FixedSizeListArray)
    return column.flatten().to_numpy().reshape(len(column), -1)
