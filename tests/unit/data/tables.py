"""Tables of documents that are all different, kept and without a class, but for what is given."""

from typing import Any

import numpy as np

from kdscale.data.cleaning.cleaner import Status
from kdscale.data.rows.selection import DocumentTable


def table(count: int, **columns: Any) -> DocumentTable:
    """Return a table of `count` documents."""
    numbers = np.arange(count, dtype=np.uint64)
    defaults = {
        "ranks": numbers,
        "digests": np.stack([np.zeros(count, np.uint64), numbers], axis=1),
        "status": np.full(count, Status.KEPT, np.uint8),
        "labels": np.full(count, -1, np.int32),
        "changed": np.zeros(count, np.uint32),
    }
    return DocumentTable(**defaults | columns)


def digests(*numbers: int) -> np.ndarray:
    """Return [N, 2] uint64, equal where the numbers are."""
    return np.array([[7, number] for number in numbers], np.uint64).reshape(-1, 2)
