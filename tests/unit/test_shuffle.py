"""The permutation: a bijection, uniform over its keys, and the same for ever."""

import numpy as np
import pytest

from kdscale.shuffle import hash_key, permute

KEYS = 3000


@pytest.mark.parametrize("n", [2, 3, 5, 8, 10, 16, 17, 24, 65])
def test_an_index_goes_everywhere_equally_often(n: int) -> None:
    """Pearson's chi-square over the keys, for every index: (x - df) / sqrt(2 df) is about normal,
    with a tail to the right for few degrees of freedom. Four rounds at n = 5 give 27."""
    orders = np.stack([permute(np.arange(n), n, hash_key(3, key)) for key in range(KEYS)])
    assert (np.sort(orders, axis=1) == np.arange(n)).all()
    counts = np.stack([np.bincount(orders[:, index], minlength=n) for index in range(n)])
    chi_square = ((counts - KEYS / n) ** 2 / (KEYS / n)).sum(1)
    assert ((chi_square - (n - 1)) / np.sqrt(2 * (n - 1))).max() < 6


def test_two_neighbours_go_to_all_pairs_equally_often() -> None:
    n, pairs = 7, 42
    orders = np.stack([permute(np.arange(n), n, hash_key(4, key)) for key in range(KEYS)])
    counts = np.bincount(orders[:, 2] * n + orders[:, 3], minlength=n * n).reshape(n, n)
    assert (np.diag(counts) == 0).all()
    chi_square = ((counts - KEYS / pairs) ** 2 / (KEYS / pairs))[~np.eye(n, dtype=bool)].sum()
    assert (chi_square - (pairs - 1)) / np.sqrt(2 * (pairs - 1)) < 6


def test_keys_are_splitmix64() -> None:
    """The first output of the reference generator for seed 0, and 64 bits whatever the parts."""
    assert hash_key(0) == 0xE220A8397B1DCDAF
    assert hash_key(1, 2) != hash_key(2, 1)
    assert 0 <= hash_key(-1, 2**80) < 2**64
