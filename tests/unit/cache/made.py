"""Chunks of made-up rows."""

from dataclasses import fields

import numpy as np

from kdscale.cache.format.row_records import FixedRows, new_rows, row_type
from kdscale.cache.rows import CachedRows
from kdscale.types import Rows


def make_rows(rows: int, length: int, width: int, seed: int = 0) -> CachedRows:
    """Any content, in arrays of their own."""
    generator = np.random.default_rng(seed)
    return CachedRows(
        Rows(
            sample_ids=generator.integers(0, 256, (rows, 16), np.uint8),
            input_ids=generator.integers(0, 2**31, (rows, length), np.int32),
            segment_ids=generator.integers(0, 9, (rows, length), np.int32),
            loss_mask=generator.integers(0, 2, (rows, length)).astype(np.bool_),
            byte_counts=generator.uniform(0, 99, rows),
        ),
        payload=generator.integers(0, 256, (rows, length, width), np.uint8),
        entropy=generator.uniform(0, 4, rows).astype(np.float32),
        nll=generator.uniform(0, 4, rows).astype(np.float32),
    )


def fixed(chunk: CachedRows) -> FixedRows:
    """Return a copy of `chunk`, field by field."""
    rows = new_rows(len(chunk), row_type(*chunk.payload.shape[1:]))
    for whole, part in ((rows, chunk), (rows.rows, chunk.rows)):
        for field in fields(part):
            if field.name not in ("rows", "labels"):
                getattr(whole, field.name)[:] = getattr(part, field.name)
    return rows
