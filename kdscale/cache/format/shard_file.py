"""One shard as an Arrow IPC file: one record batch a chunk, columns of fixed width.

Any Arrow reader opens the whole object. Ours fetches a chunk with one range read and decodes it
with the schema alone, which follows from row length and codec. Arrow compresses each column with
zstd: tokens and masks take 2 bytes a position instead of 9. The payload of a codec that samples is
packed (packing.py) over the whole chunk and stored in the chunk's first row.

Checksums are over the bytes as stored: xxh3_64 of a chunk, xxh3_128 of an object. Beside each shard
stands its index, a small file with the row statistics and the table of chunks, so that neither a
curriculum nor a lookup ever touches the data.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import cache
from typing import Any

import numpy as np
import pyarrow as pa
import xxhash

from kdscale.cache.format.columns import as_binary, as_lists, from_binary, from_lists, from_numbers
from kdscale.cache.format.packing import Packing
from kdscale.cache.format.records import Chunk
from kdscale.cache.format.row_records import FixedRows, new_rows, payload_offsets, row_type
from kdscale.cache.rows import RowStats
from kdscale.types import Rows

# The magic word at the start of a file, with its padding.
_MAGIC_BYTES = 8
_OPTIONS = pa.ipc.IpcWriteOptions(compression=pa.Codec("zstd", 1), use_threads=False)


@dataclass(frozen=True)
class ShardObject:
    """An encoded shard, ready for one put."""

    data: bytes
    digest: str
    chunks: tuple[Chunk, ...]


def object_digest(data: bytes) -> str:
    """xxh3_128 in hex."""
    return xxhash.xxh3_128_hexdigest(data)


def chunk_digest(data: bytes | memoryview) -> str:
    """xxh3_64 in hex."""
    return xxhash.xxh3_64_hexdigest(data)


def encode_shard(
    rows: Rows,
    payload: np.ndarray,
    stats: RowStats,
    metadata: Mapping[str, str],
    sequences_per_chunk: int,
    packing: Packing | None = None,
) -> ShardObject:
    """Encode rows, their payload and their statistics as one object.

    Equal input gives equal bytes.

    payload: [R, T, bytes a position] or [R, T * bytes a position] uint8; `metadata` goes to the
    schema. With `packing` the payload keeps the rows' targets only: positions outside the loss
    mask come back as zeros, which they are.
    """
    count, seq_len = rows.input_ids.shape
    payload = np.ascontiguousarray(payload).reshape(count, seq_len, -1)
    assert payload.dtype == np.uint8
    assert np.array_equal(stats.sample_ids, rows.sample_ids)
    layout = Layout(seq_len, payload.shape[-1], packing, rows.labels is not None)
    schema = layout.schema.with_metadata(dict(metadata))
    sink = pa.BufferOutputStream()
    sizes = []
    with pa.ipc.new_file(sink, schema, options=_OPTIONS) as writer:
        for first in range(0, count, sequences_per_chunk):
            part = np.arange(first, min(first + sequences_per_chunk, count))
            writer.write_batch(_chunk(rows, payload, stats, part, layout))
            sizes.append(len(part))
    data = sink.getvalue().to_pybytes()
    return ShardObject(data, object_digest(data), _chunks(data, sizes))


def decode_chunk(data: bytes, layout: "Layout") -> FixedRows:
    """Return the rows of one chunk, from the bytes that its offset and length name.

    Verify them first.
    """
    message = pa.ipc.read_message(pa.py_buffer(data))
    batch = pa.ipc.read_record_batch(message, layout.schema)
    kind = row_type(layout.seq_len, layout.bytes_per_position, layout.labelled)
    found = new_rows(len(batch), kind)
    rows = found.rows
    rows.sample_ids[:] = from_binary(batch["sample_id"])
    rows.input_ids[:] = from_lists(batch["input_ids"])
    rows.segment_ids[:] = from_lists(batch["segment_ids"])
    rows.loss_mask[:] = from_lists(batch["loss_mask"])
    rows.byte_counts[:] = from_numbers(batch["byte_count"])
    if rows.labels is not None:
        rows.labels[:] = from_lists(batch["labels"])
    found.entropy[:] = from_numbers(batch["entropy"])
    found.nll[:] = from_numbers(batch["nll"])
    if layout.packing is None:
        found.payload[:] = from_binary(batch["payload"]).reshape(found.payload.shape)
    else:
        found.payload[:] = 0
        mask = rows.loss_mask
        contexts, places = rows.input_ids[mask], payload_offsets(found)[mask]
        packed = batch["payload"][0].as_buffer()
        layout.packing.unpack_to(found.records.view(np.uint8), places, contexts, packed)
    return found


@dataclass(frozen=True)
class ShardIndex:
    """Content of a shard's index object."""

    stats: RowStats
    chunks: tuple[Chunk, ...]


def encode_index(stats: RowStats, chunks: tuple[Chunk, ...]) -> bytes:
    """Row statistics as a small Arrow IPC file; the table of chunks is in its metadata."""
    columns = [as_binary(stats.sample_ids), *_stats_columns(stats)]
    table = json.dumps([chunk.model_dump() for chunk in chunks])
    schema = pa.schema([_SAMPLE_ID, *_STATS], metadata={_CHUNKS: table})
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, schema) as writer:
        writer.write_batch(pa.RecordBatch.from_arrays(columns, schema=schema))
    return sink.getvalue().to_pybytes()


def decode_index(data: bytes) -> ShardIndex:
    """Invert `encode_index`. Verify the bytes first."""
    with pa.ipc.open_file(pa.py_buffer(data)) as file:
        batch, metadata = file.get_batch(0), file.schema.metadata
    statistics = (from_numbers(batch[field.name]) for field in _STATS)
    chunks = tuple(Chunk(**entry) for entry in json.loads(metadata[_CHUNKS]))
    return ShardIndex(RowStats(from_binary(batch["sample_id"]), *statistics), chunks)


_CHUNKS = b"kdscale.chunks"
_SAMPLE_ID = pa.field("sample_id", pa.binary(16), nullable=False)
_STATS: list["pa.Field[Any]"] = [
    pa.field("entropy", pa.float32(), nullable=False),
    pa.field("nll", pa.float32(), nullable=False),
    pa.field("length", pa.int32(), nullable=False),
]


@dataclass(frozen=True)
class Layout:
    """Everything needed to decode a chunk."""

    seq_len: int
    bytes_per_position: int
    packing: Packing | None
    labelled: bool = False
    """True where rows have labels; otherwise these are the next tokens."""

    @property
    def schema(self) -> pa.Schema:
        """The columns of a data object."""
        is_packed = self.packing is not None
        return _schema(self.seq_len, self.bytes_per_position, is_packed, self.labelled)


@cache
def _schema(seq_len: int, bytes_per_position: int, packed: bool, labelled: bool) -> pa.Schema:
    labels = pa.field("labels", pa.list_(pa.int32(), seq_len), nullable=False)
    payload = pa.binary() if packed else pa.binary(seq_len * bytes_per_position)
    return pa.schema(
        [
            _SAMPLE_ID,
            pa.field("input_ids", pa.list_(pa.int32(), seq_len), nullable=False),
            pa.field("segment_ids", pa.list_(pa.int32(), seq_len), nullable=False),
            pa.field("loss_mask", pa.list_(pa.uint8(), seq_len), nullable=False),
            pa.field("byte_count", pa.float64(), nullable=False),
            *([labels] if labelled else []),
            pa.field("payload", payload, nullable=False),
            *_STATS,
        ]
    )


def _chunk(
    rows: Rows, payload: np.ndarray, stats: RowStats, part: np.ndarray, layout: Layout
) -> pa.RecordBatch:
    """Return the rows at `part` as a record batch."""
    rows, payload = rows.take(part), payload[part]
    some = RowStats(*(getattr(stats, f.name)[part] for f in fields(RowStats)))
    if layout.packing is None:
        column = as_binary(payload.reshape(len(part), -1))
    else:
        mask = rows.loss_mask
        packed = layout.packing.pack(rows.input_ids[mask], payload[mask])
        column = pa.array([packed] + [b""] * (len(part) - 1), pa.binary())
    columns = [
        as_binary(rows.sample_ids),
        as_lists(rows.input_ids.astype(np.int32)),
        as_lists(rows.segment_ids.astype(np.int32)),
        as_lists(rows.loss_mask.astype(np.uint8)),
        pa.array(rows.byte_counts, pa.float64()),
        *([] if rows.labels is None else [as_lists(rows.labels.astype(np.int32))]),
        column,
        *_stats_columns(some),
    ]
    return pa.RecordBatch.from_arrays(columns, schema=layout.schema)


def _chunks(data: bytes, sizes: list[int]) -> tuple[Chunk, ...]:
    """Return where each record batch lies in a file: the messages after magic word and schema."""
    source = pa.BufferReader(data)
    source.seek(_MAGIC_BYTES)
    pa.ipc.read_message(source)
    chunks = []
    for rows in sizes:
        offset = source.tell()
        pa.ipc.read_message(source)
        length = source.tell() - offset
        digest = chunk_digest(memoryview(data)[offset : offset + length])
        chunks.append(Chunk(offset=offset, length=length, rows=rows, digest=digest))
    return tuple(chunks)


def _stats_columns(stats: RowStats) -> list["pa.Array[Any]"]:
    arrays = (stats.entropy, stats.nll, stats.length)
    return [pa.array(array, field.type) for array, field in zip(arrays, _STATS, strict=True)]
