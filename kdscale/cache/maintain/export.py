"""A cache's rows, decoded, for programs that know nothing of kdscale: Parquet or safetensors.

Targets come out as the student sees them, ids and probabilities of full width, so an export is
several times the size of the cache. It is written file by file, each small enough to be held in
memory, and `index.json` last: an export without one is not complete.
"""

import json
from collections.abc import Callable
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import safetensors.numpy
import torch

from kdscale.cache.codecs import Codec
from kdscale.cache.format.columns import as_binary
from kdscale.cache.read.loader import read_batches
from kdscale.cache.read.reader import CacheReader
from kdscale.cache.rows import CachedRows
from kdscale.errors import KdscaleError
from kdscale.store import Store
from kdscale.types import DenseTargets

Columns = dict[str, np.ndarray]
Format = Literal["parquet", "safetensors"]

INDEX_KEY = "index.json"

_FILE_BYTES = 128 << 20


def export(
    reader: CacheReader,
    out: Store,
    format: Format,
    *,
    rows: int | None = None,
    file_bytes: int = _FILE_BYTES,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """Write the first `rows` rows (all when not given) to `out`; gives what `index.json` says.

    file_bytes: of a file's decoded rows, before any compression. progress: called with (rows done,
    rows in all). KdscaleError where `out` holds something already, or where the cache is damaged.
    """
    if out.list():
        raise KdscaleError(
            f"{out} is not empty.", "Export to another place, or delete what is there."
        )
    total = len(reader) if rows is None else min(rows, len(reader))
    rows_per_file = _rows_per_file(reader, file_bytes)
    starts = range(0, total, rows_per_file)
    orders = (np.arange(start, min(start + rows_per_file, total)) for start in starts)
    files = []
    columns: Columns = {}
    for number, cached in enumerate(read_batches(reader, orders, prefetch=1)):
        columns = decode_columns(cached, reader.codec)
        name = f"part-{number:06d}.{format}"
        out.put(name, _ENCODE[format](columns, _metadata(reader)))
        files.append({"file": name, "first_row": starts[number], "rows": len(cached)})
        if progress:
            progress(starts[number] + len(cached), total)
    shapes = {n: {"dtype": str(c.dtype), "shape": c.shape[1:]} for n, c in columns.items()}
    index = {"format": format, "rows": total, "columns": shapes, "files": files}
    index |= {"cache": _metadata(reader)}
    out.put(INDEX_KEY, json.dumps(index, indent=1).encode())
    return index


def decode_columns(cached: CachedRows, codec: Codec) -> Columns:
    """Rows with their targets decoded, a column each.

    sample_id [R, 16] uint8, input_ids and segment_ids [R, T] int32, loss_mask [R, T] bool,
    byte_count [R] float64, entropy and nll [R] float32; where rows bring them, labels [R, T] int32,
    -1 where there is none. Of a codec that keeps K ids: target_ids
    [R, T, K] int32 and target_probs [R, T, K] float32, with ghost [R, T] float32 where it has a
    ghost bucket; an id may occur more than once, its probabilities then add up. Of codec `full`:
    log_probs [R, T, V] float32. Positions outside the loss mask have no probability anywhere.
    """
    rows, mask = cached.rows, torch.from_numpy(cached.rows.loss_mask)[..., None]
    columns: Columns = {
        "sample_id": rows.sample_ids,
        "input_ids": rows.input_ids,
        "segment_ids": rows.segment_ids,
        "loss_mask": rows.loss_mask,
        "byte_count": rows.byte_counts,
        "entropy": cached.entropy,
        "nll": cached.nll,
    }
    if rows.labels is not None:
        columns["labels"] = rows.labels
    targets = codec.decode(torch.from_numpy(cached.payload))
    if isinstance(targets, DenseTargets):
        log_probs = targets.log_probs.masked_fill(~mask, -torch.inf)
        return columns | {"log_probs": log_probs.numpy()}
    columns["target_ids"] = targets.ids.masked_fill(~mask, 0).int().numpy()
    columns["target_probs"] = targets.probs.masked_fill(~mask, 0).numpy()
    if targets.ghost is not None:
        columns["ghost"] = targets.ghost.masked_fill(~mask[..., 0], 0).numpy()
    return columns


def _rows_per_file(reader: CacheReader, file_bytes: int) -> int:
    """Return the sequences of a file: as many as fit, at least one and at most a shard's."""
    one = decode_columns(reader.read(np.arange(1)), reader.codec)
    row_bytes = sum(column.nbytes for column in one.values())
    return max(1, min(file_bytes // row_bytes, reader.manifest.generations[0].sequences_per_shard))


def _metadata(reader: CacheReader) -> dict[str, Any]:
    """Return the description of the rows' cache."""
    record = reader.manifest.record
    return {
        "fingerprint": record.fingerprint,
        "version": record.version,
        "identity": record.identity,
    }


def _parquet(columns: Columns, metadata: dict[str, Any]) -> bytes:
    """Encode as a file with a row a record; every page has a checksum."""
    arrays = {name: _arrow(name, values) for name, values in columns.items()}
    table = pa.table(arrays).replace_schema_metadata({"kdscale": json.dumps(metadata)})
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd", write_page_checksum=True)
    return sink.getvalue().to_pybytes()


def _arrow(name: str, values: np.ndarray) -> "pa.Array[Any]":
    """[R, a, b, ...] -> R fixed-size lists of fixed-size lists; the ids of samples are binary."""
    if name == "sample_id":
        return as_binary(values)
    column: pa.Array[Any] = pa.array(values.reshape(-1))
    for size in reversed(values.shape[1:]):
        column = pa.FixedSizeListArray.from_arrays(column, size)
    return column


def _safetensors(columns: Columns, metadata: dict[str, Any]) -> bytes:
    """Encode as a file with a tensor a column."""
    contiguous = {name: np.ascontiguousarray(values) for name, values in columns.items()}
    return safetensors.numpy.save(contiguous, {"kdscale": json.dumps(metadata)})


_ENCODE: dict[Format, Callable[[Columns, dict[str, Any]], bytes]] = {
    "parquet": _parquet,
    "safetensors": _safetensors,
}
