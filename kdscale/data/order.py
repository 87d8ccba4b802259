"""A seeded permutation with random access: no table, the same on every machine.

A four-round Feistel network over the smallest power of four that covers n, walked until the value
falls below n (format-preserving encryption by cycle walking; Black and Rogaway, CT-RSA 2002). It
gives any element of an epoch's order in constant time and memory, which lets ranks, loader workers
and resumed runs agree without talking.
"""

import numpy as np

_ROUNDS = 4


def permute(indices: np.ndarray, n: int, key: int) -> np.ndarray:
    """Where a pseudo-random permutation of range(n), chosen by `key`, sends `indices`.

    `indices` is [B] of integers in 0..n-1; the answer is [B] int64.
    """
    if n <= 1:
        return np.zeros(len(indices), dtype=np.int64)
    half_bits = max(1, ((n - 1).bit_length() + 1) // 2)
    values = _encrypt(np.asarray(indices, dtype=np.uint64), half_bits, key)
    outside = values >= n
    while outside.any():
        values[outside] = _encrypt(values[outside], half_bits, key)
        outside = values >= n
    return values.astype(np.int64)


def uniform_batch(position: int, batch_rows: int, n: int, seed: int) -> np.ndarray:
    """Row numbers [batch_rows] from `position` on in an endless stream of shuffled epochs."""
    stream = np.arange(position, position + batch_rows, dtype=np.int64)
    rows = np.empty(batch_rows, dtype=np.int64)
    for epoch in np.unique(stream // n):
        here = stream // n == epoch
        rows[here] = permute(stream[here] % n, n, key=hash_key(seed, int(epoch)))
    return rows


def spread(count: int, total: int) -> np.ndarray:
    """`count` row numbers (at most `total`) spread evenly over range(total), ascending; int64."""
    count = min(count, total)
    return ((np.arange(count) * 2 + 1) * total // (2 * max(1, count))).astype(np.int64)


def hash_key(*parts: int) -> int:
    """64 bits that depend on every part (splitmix64)."""
    state = 0
    for part in parts:
        state = int(_mix(np.array([(state ^ part) & (2**64 - 1)], dtype=np.uint64))[0])
    return state


def _encrypt(values: np.ndarray, half_bits: int, key: int) -> np.ndarray:
    mask = np.uint64((1 << half_bits) - 1)
    shift = np.uint64(half_bits)
    left, right = values >> shift, values & mask
    for round_number in range(_ROUNDS):
        salt = np.uint64(hash_key(key, round_number))
        left, right = right, left ^ (_mix(right ^ salt) & mask)
    return (left << shift) | right


def _mix(values: np.ndarray) -> np.ndarray:
    """The finaliser of splitmix64 (Steele, Lea, Flood, OOPSLA 2014), elementwise on uint64."""
    values = values + np.uint64(0x9E3779B97F4A7C15)
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))
