"""Files of a source, and their records: Parquet, Arrow streams (`save_to_disk`) and JSON lines."""

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from kdscale.data.sources.folders import find_files
from kdscale.data.sources.json_records import json_records
from kdscale.data.sources.opening import DAMAGES, open_raw, open_unpacked
from kdscale.errors import KdscaleError
from kdscale.importing.sequence import Ragged, ragged

# Rows of a batch: their targets are in memory at once, and a row may have thousands of positions.
_ROWS = 16
_COLUMNAR = (".parquet", ".arrow")
_JSON = (".jsonl", ".ndjson", ".json", ".jsonl.gz", ".jsonl.zst", ".json.gz")
RECORDS = (*_COLUMNAR, *_JSON)

Record = dict[str, Any]
"""A record: of a columnar file each value is an Arrow scalar, of JSON a Python value."""


def find(place: str, endings: Iterable[str]) -> list[tuple[str, str]]:
    """Return (root, key) of the files at a path, folder or glob that end so; they hold something.

    In the order of the numbers in their names: data_2 comes before data_10.
    """
    found = find_files(place, "text")
    keys = [key for key in found.keys if key.lower().endswith(tuple(endings))]
    return [(found.root, key) for key in sorted(keys, key=_by_number)]


def _by_number(key: str) -> tuple[str, ...]:
    """Return the key with its numbers padded."""
    parts, digits = [], ""
    for character in f"{key}\0":
        if character.isdigit():
            digits += character
        else:
            parts.append(digits.zfill(20) if digits else "")
            parts.append(character)
            digits = ""
    return tuple(parts)


def columns_of(file: tuple[str, str]) -> list[str]:
    """Return the names of a file's columns; of JSON those of its first record."""
    if file[1].lower().endswith(_COLUMNAR):
        with open_raw(*file) as opened:
            return _schema(file, opened).names
    first = next(iter(_json(file)), None)
    return list(first[1]) if first is not None else []


def records(file: tuple[str, str], columns: Iterable[str]) -> Iterator[tuple[str, Record]]:
    """Yield (where, record) of each row of a file, with those of `columns` that it has."""
    wanted = set(columns)
    if not file[1].lower().endswith(_COLUMNAR):
        yield from _json(file)
        return
    row = 0
    try:
        for batch in _batches(file, wanted):
            for index in range(len(batch)):
                values = {name: batch[name][index] for name in batch.schema.names}
                yield f"{file[1]}, row {row}", values
                row += 1
    except DAMAGES as error:
        raise _damaged(file, error, row) from error


def _batches(file: tuple[str, str], wanted: set[str]) -> Iterator[pa.RecordBatch]:
    with open_raw(*file) as opened:
        names = [name for name in _schema(file, opened).names if name in wanted]
        opened.seek(0)
        if file[1].lower().endswith(".parquet"):
            table = pq.ParquetFile(opened, page_checksum_verification=True)
            yield from table.iter_batches(_ROWS, columns=names)
            return
        for batch in pa.ipc.open_stream(_arrow(opened)):
            part = batch.select(names)
            for first in range(0, len(part), _ROWS):
                yield part.slice(first, _ROWS)


def _schema(file: tuple[str, str], opened: Any) -> pa.Schema:
    try:
        if file[1].lower().endswith(".parquet"):
            return pq.read_schema(opened)
        return pa.ipc.open_stream(_arrow(opened)).schema
    except (*DAMAGES, OSError) as error:
        raise _damaged(file, error, 0) from error


def _arrow(opened: Any) -> pa.NativeFile:
    return pa.PythonFile(opened)


def _json(file: tuple[str, str]) -> Iterator[tuple[str, Record]]:
    with open_raw(*file) as raw:
        try:
            for number, record in enumerate(json_records(open_unpacked(raw), lambda _: None)):
                where = f"{file[1]}, record {number}"
                if not isinstance(record.value, dict):
                    raise KdscaleError(
                        f"{where} is {str(record.problem or record.value)[:80]!r}, no JSON object.",
                        "Write one JSON object a line.",
                    )
                yield where, record.value
        except DAMAGES as error:
            raise _damaged(file, error, 0) from error


def _damaged(file: tuple[str, str], error: Exception, row: int) -> KdscaleError:
    return KdscaleError(
        f"{file[0]}/{file[1]} cannot be read after row {row}: {str(error)[:200]}",
        "Write or fetch the file again, or take it out of the source.",
    )


def vector(where: str, name: str, value: Any) -> np.ndarray:
    """Return a list of numbers, [n] float64 or int64, from a record's value."""
    found: np.ndarray
    try:
        is_arrow = isinstance(value, pa.Scalar)
        found = value.values.to_numpy(zero_copy_only=False) if is_arrow else np.array(value)
    except (ValueError, TypeError, AttributeError) as error:
        raise _no_numbers(where, name, value) from error
    if found.ndim != 1 or (found.dtype.kind not in "iufb" and len(found)):
        raise _no_numbers(where, name, value)
    return found


def matrix(where: str, name: str, value: Any) -> Ragged:
    """Return a list of lists of numbers from a record's value."""
    is_arrow = isinstance(value, pa.Scalar)
    try:
        if not is_arrow:
            return ragged(value)
        rows: Any = value.values
        counts = pc.fill_null(pc.list_value_length(rows), 0).to_numpy(zero_copy_only=False)
        return Ragged(rows.flatten().to_numpy(zero_copy_only=False), counts.astype(np.int64))
    except (ValueError, TypeError, AttributeError, pa.ArrowException) as error:
        raise _no_numbers(where, name, value) from error


def is_null(value: Any) -> bool:
    """Return whether a record's value is missing."""
    return value is None or (isinstance(value, pa.Scalar) and not value.is_valid)


def plain(value: Any) -> Any:
    """Return a record's value as Python values."""
    return value.as_py() if isinstance(value, pa.Scalar) else value


def _no_numbers(where: str, name: str, value: Any) -> KdscaleError:
    kind = value.type if isinstance(value, pa.Scalar) else type(value).__name__
    return KdscaleError(
        f"{where}: the column {name!r} ({kind}) holds no list of numbers of the expected depth.",
        "Write tokens as a list of ids, and ids and values as a list of lists, one a position.",
    )
