"""Shares of a global batch: which sequences a rank takes, and its micro-batches.

There are no divisibility rules: every rank runs the same number of micro-batches, and where it has
fewer sequences than another, one is repeated with an empty loss mask.
"""

from collections.abc import Iterator

import numpy as np
import xxhash

from kdscale.config import RunConfig
from kdscale.data.rows.prepared import Prepared
from kdscale.models.sequence_check import SequenceSpec


def micro_batches_per_rank(global_batch_size: int, micro_batch_size: int, world_size: int) -> int:
    """Return the forwards that each rank runs for a global batch."""
    rows_of_rank_0 = -(-global_batch_size // world_size)
    return -(-rows_of_rank_0 // micro_batch_size)


def batch_digest(batch: np.ndarray) -> float:
    """Return a number for the indices of the global `batch` ([B] int64) and their order.

    Below 2^48, which a float holds exactly: runs that log the same ones saw the same data.
    """
    return float(xxhash.xxh3_64_intdigest(batch.astype("<i8").tobytes()) >> 16)


def rank_rows(batch: np.ndarray, rank: int, world_size: int) -> np.ndarray:
    """Return this rank's part of the global `batch` ([B] int64): every world_size-th index."""
    return batch[rank::world_size]


def split_micro_batches(
    mine: np.ndarray, batch: np.ndarray, micro_batch_size: int, world_size: int
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield (indices [m], valid [m] bool) of each micro-batch of a rank whose indices are `mine`.

    All micro-batches of all ranks but the last of each rank have `micro_batch_size` sequences;
    invalid ones must not count in the loss.
    """
    count = micro_batches_per_rank(len(batch), micro_batch_size, world_size)
    per_rank = -(-len(batch) // world_size)
    padded = np.concatenate([mine, np.repeat(batch[:1], per_rank - len(mine))])
    valid = np.arange(per_rank) < len(mine)
    for index in range(count):
        part = slice(index * micro_batch_size, (index + 1) * micro_batch_size)
        yield padded[part], valid[part]


def sequence_spec(config: RunConfig, prepared: Prepared, micro_batch_size: int) -> SequenceSpec:
    """Return the sequences of a run, for the check of a model that is to take them."""
    return SequenceSpec(
        vocab_size=prepared.vocab_size,
        outputs=prepared.outputs,
        seq_len=config.data.seq_len,
        packs=config.packs,
        micro_batch_size=micro_batch_size,
    )
