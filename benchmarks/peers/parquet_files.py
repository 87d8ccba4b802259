"""Parquet files under `datasets`, Hugging Face's library: the common part of its two readers.

Fields are binary columns: read at several times the speed of list columns, which would moreover
come out as int64. Row groups of 1,000 rows, snappy and files of 64 MiB, as `to_parquet` and the Hub
would make them.
"""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.peers.contract import FIELDS, Place, Records

_FILE_BYTES = 64 << 20
_GROUP_ROWS = 1000


def write(records: Records, folder: Path) -> None:
    """Write Parquet files of binary columns."""
    folder.mkdir(parents=True, exist_ok=True)
    row_bytes = sum(values.nbytes for values in records.row(0).values())
    file_rows = _FILE_BYTES // row_bytes
    for number, start in enumerate(range(0, len(records), file_rows)):
        rows = slice(start, min(start + file_rows, len(records)))
        table = pa.table({name: _binary(getattr(records, name)[rows]) for name in FIELDS})
        pq.write_table(table, folder / f"part-{number:05d}.parquet", row_group_size=_GROUP_ROWS)


def load_options(place: Place) -> dict[str, Any]:
    """Return the arguments of `datasets.load_dataset`."""
    return {
        "path": "parquet",
        "data_files": place.urls(".parquet"),
        "split": "train",
        "cache_dir": str(place.cache),
    }


def from_binary(name: str, data: bytes | memoryview, rows: int) -> np.ndarray:
    """Return a field's bytes of `rows` rows as [rows, values]."""
    return np.frombuffer(data, np.int32 if name == "input_ids" else np.uint8).reshape(rows, -1)


def _binary(values: np.ndarray) -> pa.Array:
    return pa.array([np.ravel(row).tobytes() for row in values], pa.binary())
