"""Which rows, in which order: pure functions of a position and a seed."""

import numpy as np

from kdscale.utils.permutation import hash_key, permute


def uniform_batch(position: int, global_batch_size: int, n: int, seed: int) -> np.ndarray:
    """Row numbers [global_batch_size] from `position` on in endless shuffled epochs."""
    stream = np.arange(position, position + global_batch_size, dtype=np.int64)
    rows = np.empty(global_batch_size, dtype=np.int64)
    for epoch in np.unique(stream // n):
        here = stream // n == epoch
        rows[here] = permute(stream[here] % n, n, key=hash_key(seed, int(epoch)))
    return rows


class EvenRows:
    """`count` row numbers (at most `total`) spread evenly over range(total), ascending: a sequence
    that takes no memory. A slice of it is [n] int64."""

    def __init__(self, count: int, total: int) -> None:
        self.count = min(count, total)
        self.total = total

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, part: slice) -> np.ndarray:
        places = np.arange(*part.indices(self.count), dtype=np.int64)
        return (places * 2 + 1) * self.total // (2 * max(1, self.count))


def spread(count: int, total: int) -> np.ndarray:
    """All of `EvenRows`."""
    return EvenRows(count, total)[:]
