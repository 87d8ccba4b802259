"""Shares of a global batch: every sequence once, in equally many micro-batches."""

import numpy as np
import pytest

from kdscale.train.batches import micro_batches_per_rank, split_micro_batches


@pytest.mark.parametrize("world_size", [1, 2, 3, 5, 8])
@pytest.mark.parametrize(("rows", "size"), [(8, 4), (7, 2), (1, 4), (13, 5)])
def test_ranks_take_every_row_once_in_equally_many_micro_batches(
    world_size: int, rows: int, size: int
) -> None:
    batch = np.arange(100, 100 + rows)
    counted: list[int] = []
    shapes = set()
    for rank in range(world_size):
        parts = list(split_micro_batches(batch, size, rank, world_size))
        shapes.add(tuple(len(part) for part, _ in parts))
        assert len(parts) == micro_batches_per_rank(rows, size, world_size)
        for part, valid in parts:
            counted += part[valid].tolist()
    assert sorted(counted) == batch.tolist()
    assert len(shapes) == 1
