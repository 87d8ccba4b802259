"""The permutation: a bijection, uniform over its keys, and the same for ever."""

import math

import numpy as np
import pytest

from kdscale.utils.permutation import hash_key, permute


def orders_of(n: int, keys: int) -> np.ndarray:
    """[keys, n]: where each index goes."""
    found = np.stack([permute(np.arange(n), n, hash_key(3, key)) for key in range(keys)])
    assert (np.sort(found, axis=1) == np.arange(n)).all()
    return found


def deviation(counts: np.ndarray, freedom: float) -> float:
    """Pearson's chi-square of equally likely cells less its mean, in its standard deviations."""
    expected = counts.sum() / counts.size
    chi_square = ((counts - expected) ** 2 / expected).sum()
    return float((chi_square - freedom) / np.sqrt(2 * freedom))


@pytest.mark.parametrize("n", [2, 3, 4, 5, 6, 7, 8, 9, 13, 16, 17, 20, 24, 33, 48, 64, 65, 100])
def test_places_pairs_and_neighbours_are_even(n: int) -> None:
    """In standard deviations: five, or more where there are many to choose from.

    With a Feistel network of four rounds neighbours are 8 off at n = 20, and 12 at n = 33.
    """
    keys = 8000
    orders = orders_of(n, keys)
    counts = np.stack([np.bincount(orders[:, index], minlength=n) for index in range(n)])
    assert deviation(counts, (n - 1) ** 2) < 6
    before = np.stack([(orders[:, [index]] < orders).sum(0) for index in range(n)])
    pairs = (before - keys / 2)[np.triu_indices(n, 1)] / np.sqrt(keys / 4)
    assert np.abs(pairs).max() < 5.5
    variance = n * (n - 1) * (2 * n + 5) / 72
    inversions = (before * np.tri(n, k=-1)).sum() / keys - n * (n - 1) / 4
    assert abs(inversions) < 5 * np.sqrt(variance / keys)
    together = (np.abs(np.diff(orders, axis=1)) == 1).sum(1)
    assert abs(together.mean() - 2 * (n - 1) / n) <= 5 * together.std() / np.sqrt(keys)


@pytest.mark.parametrize("n", [3, 4, 5, 6])
def test_all_orders_are_equally_likely(n: int) -> None:
    orders = orders_of(n, 15_000)
    _, counts = np.unique(orders @ n ** np.arange(n), return_counts=True)
    assert len(counts) == math.factorial(n)
    assert deviation(counts, len(counts) - 1) < 5


@pytest.mark.parametrize("n", [150, 600, 1025, 2000, 4096])
def test_an_order_of_many_has_no_traces_of_its_making(n: int) -> None:
    """Neighbours that stay neighbours, and the first half's mean against that of all.

    With four rounds the spread of the latter is 10 standard deviations too large at n = 4096.
    """
    keys = 500
    orders = orders_of(n, keys)
    together = (np.abs(np.diff(orders, axis=1)) == 1).sum(1)
    assert abs(together.mean() - 2 * (n - 1) / n) < 5 * np.sqrt(2 / keys)
    half = n // 2
    variance = (n * n - 1) / 12 / half * (n - half) / (n - 1)
    share = orders[:, :half].mean(1).var() / variance
    assert abs(share - 1) < 5 * np.sqrt(2 / keys)


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


def test_keys_are_splitmix64() -> None:
    """The first output of the reference generator for seed 0, and 64 bits whatever the parts."""
    assert hash_key(0) == 0xE220A8397B1DCDAF
    assert hash_key(1, 2) != hash_key(2, 1)
    assert 0 <= hash_key(-1, 2**80) < 2**64
