"""Decoded rows one after the other in memory, each with all its fields: taking a row is one copy.

A batch takes single rows out of many chunks. Field by field that would be eight small copies a row,
and on a disk as many pages apart; here a row is one run of bytes, as wide as every other row of the
cache. The fields of many rows are views with a stride, which NumPy and torch use as they are.
"""

from dataclasses import dataclass, fields
from functools import cache

import numpy as np

from kdscale.cache.rows import CachedRows
from kdscale.types import Rows

# Rows start at cache lines.
_ALIGNMENT = 64
_ROW_FIELDS = tuple(field.name for field in fields(Rows))


@dataclass(frozen=True)
class FixedRows(CachedRows):
    """Rows whose arrays are views of `records`."""

    records: np.ndarray  # [B] void, as wide as `row_type`


@cache
def row_type(seq_len: int, bytes_per_position: int, labelled: bool = False) -> np.dtype[np.void]:
    """Return the dtype of a row: wide fields first, so that each is aligned without gaps."""
    layout: list[tuple[str, str, tuple[int, ...]]] = [
        ("byte_counts", "<f8", ()),
        ("entropy", "<f4", ()),
        ("nll", "<f4", ()),
        ("input_ids", "<i4", (seq_len,)),
        ("segment_ids", "<i4", (seq_len,)),
        *([("labels", "<i4", (seq_len,))] if labelled else []),
        ("sample_ids", "u1", (16,)),
        ("loss_mask", "?", (seq_len,)),
        ("payload", "u1", (seq_len, bytes_per_position)),
    ]
    padding = -np.dtype(layout).itemsize % _ALIGNMENT
    return np.dtype([*layout, ("padding", "u1", (padding,))])


def empty_records(count: int, kind: np.dtype[np.void]) -> np.ndarray:
    """[count] void for rows of `kind`. Without fields: NumPy copies such records as a whole."""
    return np.empty(count, np.dtype((np.void, kind.itemsize)))


def view_rows(records: np.ndarray, kind: np.dtype[np.void]) -> FixedRows:
    """Return the rows in `records` ([B] void of the width of `kind`), not copied."""
    views = records.view(kind)
    own = {field.name: views[field.name] for field in fields(CachedRows) if field.name != "rows"}
    rows = {name: views[name] for name in _ROW_FIELDS if name in (kind.names or ())}
    return FixedRows(Rows(**rows), **own, records=records)


def new_rows(count: int, kind: np.dtype[np.void]) -> FixedRows:
    """`count` rows of `kind` to be filled in."""
    rows = view_rows(empty_records(count, kind), kind)
    # The padding goes to files, which are to be the same each time.
    rows.records.view(kind)["padding"] = 0
    return rows


def payload_offsets(rows: FixedRows) -> np.ndarray:
    """[B, T] int64: where each position's payload starts among the bytes of `rows.records`."""
    row, position, _ = rows.payload.strides
    start = rows.payload.ctypes.data - rows.records.ctypes.data
    count, length, _ = rows.payload.shape
    return start + row * np.arange(count)[:, None] + position * np.arange(length)
