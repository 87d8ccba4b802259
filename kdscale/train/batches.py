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
from kdscale.utils.rank_share import rank_share


def micro_batches_per_rank(global_batch_size: int, micro_batch_size: int, world_size: int) -> int:
    """Return the forwards that each rank runs for a global batch."""
    rows_of_rank_0 = -(-global_batch_size // world_size)
    return -(-rows_of_rank_0 // micro_batch_size)


def batch_digest(batch: np.ndarray) -> float:
    """Return a number for the indices of the global `batch` ([B] int64) and their order.

    Below 2^48, which a float holds exactly: runs that log the same ones saw the same data.
    """
    return float(xxhash.xxh3_64_intdigest(batch.astype("<i8").tobytes()) >> 16)


def split_micro_batches(
    batch: np.ndarray, micro_batch_size: int, rank: int, world_size: int
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield (indices [m], valid [m] bool) of each micro-batch of a rank's share of `batch` [B].

    All micro-batches of all ranks but the last of each rank have `micro_batch_size` sequences;
    invalid ones must not count in the loss.
    """
    share, valid = rank_share(batch, rank, world_size)
    for first in range(0, len(share), micro_batch_size):
        part = slice(first, first + micro_batch_size)
        yield share[part], valid[part]


def sequence_spec(config: RunConfig, prepared: Prepared, micro_batch_size: int) -> SequenceSpec:
    """Return the sequences in `prepared`, for the check of a model that is to take them."""
    return SequenceSpec(
        vocab_size=prepared.vocab_size,
        outputs=prepared.outputs,
        seq_len=prepared.seq_len,
        packs=config.packs,
        micro_batch_size=micro_batch_size,
    )
