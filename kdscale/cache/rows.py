"""Rows of a cache: tokens, encoded distributions and statistics."""

from dataclasses import dataclass

import numpy as np

from kdscale.types import Rows


@dataclass(frozen=True)
class RowStats:
    """Statistics of rows, which a curriculum needs without their payload."""

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

    def part(self, part: slice) -> "CachedRows":
        """Return consecutive rows, not copied."""
        rows = self.rows.part(part)
        return CachedRows(rows, self.payload[part], self.entropy[part], self.nll[part])

    @property
    def nbytes(self) -> int:
        """Bytes in memory."""
        rows = self.rows
        arrays = (rows.sample_ids, rows.input_ids, rows.segment_ids, rows.loss_mask)
        more = (rows.byte_counts, rows.labels, self.payload, self.entropy, self.nll)
        return sum(array.nbytes for array in arrays + more if array is not None)
