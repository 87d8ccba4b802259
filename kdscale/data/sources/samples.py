"""First records of a file with all their fields, before it is known which of them hold the text."""

from itertools import islice
from pathlib import PurePosixPath
from typing import Any

import pyarrow.parquet as pq

from kdscale.data.sources.csv_records import Table
from kdscale.data.sources.fields import readable
from kdscale.data.sources.json_records import json_records
from kdscale.data.sources.opening import PARQUET, open_raw, open_unpacked, read_head, refuse_others
from kdscale.errors import KdscaleError


def sample_records(root: str, key: str, kind: str, count: int) -> list[dict[str, Any]]:
    """Return the first records of the file `key` in the store `root`, at most `count`.

    `kind` is jsonl, csv or parquet. Records that cannot be decoded are left out. Raises
    KdscaleError where the file is of another kind.
    """
    if read_head(root, key).startswith(PARQUET):
        return _parquet(root, key, count)
    if kind == "parquet":
        refuse_others(read_head(root, key), readable(key), "Parquet")
        raise KdscaleError(
            f"{readable(key)} is not a Parquet file.",
            "Write it again, or give it another name where it holds something else.",
        )
    return _csv(root, key, count) if kind == "csv" else _json(root, key, count)


def _parquet(root: str, key: str, count: int) -> list[dict[str, Any]]:
    with open_raw(root, key) as file:
        batch = next(pq.ParquetFile(file).iter_batches(count), None)
        found: list[dict[str, Any]] = [] if batch is None else batch.to_pylist()
        return found


def _csv(root: str, key: str, count: int) -> list[dict[str, Any]]:
    with open_raw(root, key) as file:
        opened = open_unpacked(file)
        refuse_others(opened.head, readable(key), "CSV")
        is_tabbed = ".tsv" in PurePosixPath(key.lower()).suffixes
        table = Table(opened.file, opened.head, (), "\t" if is_tabbed else ",")
        return [row.values for row in islice(table, count) if not row.problem]


def _json(root: str, key: str, count: int) -> list[dict[str, Any]]:
    with open_raw(root, key) as file:
        opened = open_unpacked(file)
        refuse_others(opened.head, readable(key), "JSON")
        records = islice(json_records(opened, _only_list), count)
        return [each.value for each in records if isinstance(each.value, dict)]


def _only_list(value: Any) -> list[Any] | None:
    """Return the records that an object wraps, if it has one list of objects and nothing else.

    A list of messages is a record's own.
    """
    only = next(iter(value.values())) if isinstance(value, dict) and len(value) == 1 else None
    if not isinstance(only, list) or not all(isinstance(item, dict) for item in only):
        return None
    return None if any(name in item for item in only for name in ("role", "from")) else only
