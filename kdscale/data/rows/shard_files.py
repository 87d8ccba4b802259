"""Arrow IPC files of rows in fixed-width columns.

One record batch a file and no compression: a local copy is memory-mapped and every column is a
numpy view of it. Any Arrow reader opens it. `loss_mask` is uint8, because Arrow's booleans are
single bits. Rows with labels have them as one more column.
"""

from collections.abc import Iterable, Iterator
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
import xxhash

from kdscale.data.rows.pack import concatenate
from kdscale.types import Rows

SHARD_BYTES = 64 * 2**20
# Room for Arrow's schema, padding and footer.
_OVERHEAD_BYTES = 64 * 2**10
_READ_BYTES = 2**20


def checksum(data: bytes | memoryview) -> str:
    """Return xxh3_128 as 32 hex digits, the checksum of every object of a prepared data set."""
    return xxhash.xxh3_128_hexdigest(data)


def file_checksum(file: BinaryIO) -> str:
    """Return the `checksum` of a file that may be larger than memory."""
    digest = xxhash.xxh3_128()
    while block := file.read(_READ_BYTES):
        digest.update(block)
    return digest.hexdigest()


def rows_per_shard(seq_len: int, shard_bytes: int = SHARD_BYTES) -> int:
    """Return how many rows of T tokens fit in a shard: 9 T + 24 bytes each."""
    return max(1, (shard_bytes - _OVERHEAD_BYTES) // (9 * seq_len + 24))


def in_shards(chunks: Iterable[Rows], seq_len: int, size: int) -> Iterator[Rows]:
    """Yield the rows of all chunks, `size` at a time; the last may have fewer."""
    parts: list[Rows] = []
    held = 0
    for chunk in chunks:
        parts.append(chunk)
        held += len(chunk)
        while held >= size:
            rows = concatenate(parts, seq_len)
            yield rows.take(np.arange(size))
            parts = [rows.take(np.arange(size, held))]
            held -= size
    if held:
        yield concatenate(parts, seq_len)


def encode_shard(rows: Rows) -> bytes:
    """Return the Arrow IPC file of [R, T] rows; the same rows give the same bytes."""
    seq_len = rows.input_ids.shape[1]
    columns = {
        "sample_id": _fixed_binary(rows.sample_ids),
        "input_ids": _fixed_list(rows.input_ids.astype(np.int32, copy=False), seq_len),
        "segment_ids": _fixed_list(rows.segment_ids.astype(np.int32, copy=False), seq_len),
        "loss_mask": _fixed_list(rows.loss_mask.astype(np.uint8), seq_len),
        "byte_count": pa.array(rows.byte_counts, pa.float64()),
    }
    if rows.labels is not None:
        columns["labels"] = _fixed_list(rows.labels.astype(np.int32, copy=False), seq_len)
    batch = pa.record_batch(list(columns.values()), names=list(columns))
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, batch.schema) as writer:
        writer.write_batch(batch)
    return sink.getvalue().to_pybytes()


def decode_shard(buffer: Any) -> Rows:
    """Return rows as views of `buffer`, an Arrow IPC file that `encode_shard` wrote."""
    batch: Any = pa.ipc.open_file(buffer).get_batch(0)
    count = batch.num_rows
    return Rows(
        sample_ids=np.frombuffer(batch["sample_id"].buffers()[1], np.uint8).reshape(count, 16),
        input_ids=_matrix(batch["input_ids"]),
        segment_ids=_matrix(batch["segment_ids"]),
        loss_mask=_matrix(batch["loss_mask"]).view(bool),
        byte_counts=batch["byte_count"].to_numpy(),
        labels=_matrix(batch["labels"]) if "labels" in batch.schema.names else None,
    )


def _fixed_binary(values: np.ndarray) -> pa.Array:
    count, width = values.shape
    data = pa.py_buffer(values.tobytes())
    return pa.FixedSizeBinaryArray.from_buffers(pa.binary(width), count, [None, data])


def _fixed_list(values: np.ndarray, width: int) -> pa.Array:
    return pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1)), width)


def _matrix(column: Any) -> np.ndarray:
    return column.flatten().to_numpy(zero_copy_only=True).reshape(len(column), -1)
