"""A seeded permutation with random access, the same on every machine.

Up to 1,024 indices are sorted by a hash of each, so that all orders are equally likely. More go
through a Feistel network over the smallest power of four that covers n, walked until the value
falls below n (format-preserving encryption by cycle walking; Black and Rogaway, CT-RSA 2002). It
gives any element of an epoch's order in constant time and memory, which lets ranks, loader workers
and resumed runs agree without talking. Data, curriculum and cache all shuffle with it.
"""

import numpy as np

from kdscale.utils.splitmix import FIRST, GOLDEN, SECOND, splitmix64

VERSION = 2
"""Version of the orders that keys give; raised when any of them changes."""

_TABLE = 1024
# Four leave neighbours together too often and the halves of an order too far apart, up to n = 10^4.
_ROUNDS = 6
_64_BITS = 2**64 - 1


def permute(indices: np.ndarray, n: int, key: int) -> np.ndarray:
    """Return where a pseudo-random permutation of range(n), chosen by `key`, sends `indices`.

    `indices` is [B] of integers in 0..n-1; the answer is [B] int64.
    """
    if n <= 1:
        return np.zeros(len(indices), dtype=np.int64)
    if n <= _TABLE:
        # The outputs of splitmix64, whose state grows by a constant.
        states = np.uint64(hash_key(key)) + np.uint64(GOLDEN) * np.arange(n, dtype=np.uint64)
        return np.argsort(splitmix64(states), kind="stable")[indices]
    half_bits = ((n - 1).bit_length() + 1) // 2
    salts = [np.uint64(hash_key(key, number)) for number in range(_ROUNDS)]
    values = _encrypt(np.asarray(indices, dtype=np.uint64), half_bits, salts)
    outside = np.flatnonzero(values >= n)
    while len(outside):
        values[outside] = _encrypt(values[outside], half_bits, salts)
        outside = outside[values[outside] >= n]
    return values.astype(np.int64)


def hash_key(*parts: int) -> int:
    """64 bits that depend on every part (splitmix64)."""
    state = 0
    for part in parts:
        # One number: Python's own integers are ten times faster than an array of one.
        state = ((state ^ part) + GOLDEN) & _64_BITS
        state = (state ^ (state >> 30)) * FIRST & _64_BITS
        state = (state ^ (state >> 27)) * SECOND & _64_BITS
        state ^= state >> 31
    return state


def _encrypt(values: np.ndarray, half_bits: int, salts: list[np.uint64]) -> np.ndarray:
    mask = np.uint64((1 << half_bits) - 1)
    shift = np.uint64(half_bits)
    left, right = values >> shift, values & mask
    for salt in salts:
        left, right = right, left ^ (splitmix64(right ^ salt) & mask)
    return (left << shift) | right
