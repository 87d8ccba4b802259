"""The finaliser of SplitMix64, a 64-bit hash, on NumPy arrays.

Steele, Lea, Flood, "Fast splittable pseudorandom number generators", OOPSLA 2014. The cache's noise
has the same hash in torch (`kdscale.cache.codecs.noise`).
"""

import numpy as np

GOLDEN, FIRST, SECOND = 0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB


def splitmix64(values: np.ndarray) -> np.ndarray:
    """Hash each of `values` (uint64) to uint64."""
    values = values + np.uint64(GOLDEN)
    values = (values ^ (values >> np.uint64(30))) * np.uint64(FIRST)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(SECOND)
    return values ^ (values >> np.uint64(31))
