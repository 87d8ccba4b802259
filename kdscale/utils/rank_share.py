"""A rank's share of a global batch: the one rule of all trainings, loaders and evaluations."""

import numpy as np


def rank_share(batch: np.ndarray, rank: int, world_size: int) -> tuple[np.ndarray, np.ndarray]:
    """Return a rank's share [b] of the global `batch` [B], and which of it is valid, [b] bool.

    Rank r takes every `world_size`-th index from the r-th on. All shares are of one size, b =
    ceil(B / world_size): where a rank has fewer, the batch's first index fills its share up, marked
    as not valid.
    """
    mine = batch[rank::world_size]
    filling = np.repeat(batch[:1], -(-len(batch) // world_size) - len(mine))
    share = np.concatenate([mine, filling])
    return share, np.arange(len(share)) < len(mine)
