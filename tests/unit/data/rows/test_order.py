"""Order of sequences: shuffled epochs without a table, and evenly spread choices."""

import numpy as np

from kdscale.data.rows.order import spread, uniform_batch


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
