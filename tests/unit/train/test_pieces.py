"""Batch division and row order: pure functions."""

import numpy as np
import pytest

from kdscale.data.rows.order import spread, uniform_batch
from kdscale.train.batches import (
    micro_batches_per_rank,
    rank_rows,
    split_micro_batches,
)
from kdscale.utils.permutation import permute


@pytest.mark.parametrize("world_size", [1, 2, 3, 5, 8])
@pytest.mark.parametrize(("rows", "size"), [(8, 4), (7, 2), (1, 4), (13, 5)])
def test_ranks_take_every_row_once_in_equally_many_micro_batches(
    world_size: int, rows: int, size: int
) -> None:
    batch = np.arange(100, 100 + rows)
    counted: list[int] = []
    shapes = set()
    for rank in range(world_size):
        mine = rank_rows(batch, rank, world_size)
        parts = list(split_micro_batches(mine, batch, size, world_size))
        shapes.add(tuple(len(part) for part, _ in parts))
        assert len(parts) == micro_batches_per_rank(rows, size, world_size)
        for part, valid in parts:
            counted += part[valid].tolist()
    assert sorted(counted) == batch.tolist()
    assert len(shapes) == 1


@pytest.mark.parametrize("n", [1, 2, 3, 4, 5, 16, 17, 1000, 4097])
def test_permutation_meets_every_index_once(n: int) -> None:
    for key in (0, 1, 2**63):
        assert sorted(permute(np.arange(n), n, key)) == list(range(n))


def test_permutation_has_random_access_and_looks_random() -> None:
    whole = permute(np.arange(10_000), 10_000, key=5)
    some = np.array([9_999, 0, 137])
    assert np.array_equal(permute(some, 10_000, key=5), whole[some])
    assert not np.array_equal(whole, permute(np.arange(10_000), 10_000, key=6))
    # The rank correlation of two independent orders has a standard deviation of 0.01 here.
    assert abs(np.corrcoef(np.arange(10_000), whole)[0, 1]) < 0.05
    assert abs(np.corrcoef(whole[:-1], whole[1:])[0, 1]) < 0.05


def test_a_batch_across_two_epochs_has_the_end_of_one_and_the_start_of_the_next() -> None:
    stream = np.concatenate([uniform_batch(p, 7, 10, seed=3) for p in range(0, 70, 7)])
    for epoch in range(7):
        assert sorted(stream[epoch * 10 : (epoch + 1) * 10]) == list(range(10))


def test_spread_is_even_and_complete() -> None:
    assert spread(5, 5).tolist() == [0, 1, 2, 3, 4]
    assert spread(2, 8).tolist() == [2, 6]
    assert spread(9, 3).tolist() == [0, 1, 2]
    chosen = spread(100, 1234)
    assert len(np.unique(chosen)) == 100
    assert np.diff(chosen).max() - np.diff(chosen).min() <= 1
