"""Row numbers of batches and samples: pure functions of a position and a seed."""

import numpy as np

from kdscale.utils.permutation import hash_key, permute


def uniform_batch(position: int, global_batch_size: int, n: int, seed: int) -> np.ndarray:
    """Return row numbers [global_batch_size] from `position` on in shuffled epochs."""
    stream = np.arange(position, position + global_batch_size, dtype=np.int64)
    rows = np.empty(global_batch_size, dtype=np.int64)
    for epoch in np.unique(stream // n):
        here = stream // n == epoch
        rows[here] = permute(stream[here] % n, n, key=hash_key(seed, int(epoch)))
    return rows


class EvenRows:
    """Sequence of `count` evenly spaced row numbers of range(total), ascending; no memory.

    A slice of it is [n] int64. At most `total` of them.
    """

    def __init__(self, count: int, total: int) -> None:
        self.count = min(count, total)
        self.total = total

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, part: slice) -> np.ndarray:
        places = np.arange(*part.indices(self.count), dtype=np.int64)
        return (places * 2 + 1) * self.total // (2 * max(1, self.count))


def spread(count: int, total: int) -> np.ndarray:
    """Return all of `EvenRows`."""
    return EvenRows(count, total)[:]
