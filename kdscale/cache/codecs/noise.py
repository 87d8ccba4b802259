"""Uniform numbers that are a function of (seed, sample, position, stream) and of nothing else.

A codec's draws must not depend on the batch, the rank or the device that a row met, or a unit
captured again would differ from the lost one. So there is no generator with a state: each number is
a hash of its coordinates, by the finaliser of SplitMix64 (Steele, Lea, Flood, "Fast splittable
pseudorandom number generators", OOPSLA 2014), in integer tensor operations.
"""

import torch
from torch import Tensor

from kdscale.utils.splitmix import FIRST, GOLDEN, SECOND

_MASK = (1 << 64) - 1


def uniforms(seed: int, sample_ids: Tensor, positions: int, streams: int = 2) -> Tensor:
    """Uniform numbers in [0, 1), [B, positions, streams] float64 on the device of `sample_ids`.

    sample_ids: [B, 16] uint8. The same (seed, sample id, position, stream) gives the same number in
    every batch and on every device; 53 bits of it are random.
    """
    words = sample_ids.contiguous().view(torch.int64)
    state = _mix(words[:, 0] ^ _signed(seed * GOLDEN + GOLDEN))
    state = _mix(state ^ words[:, 1])
    position = torch.arange(positions, device=sample_ids.device) * _signed(GOLDEN)
    state = _mix(state[:, None] + position)
    stream = torch.arange(1, streams + 1, device=sample_ids.device) * _signed(GOLDEN)
    state = _mix(state[..., None] + stream)
    return _shift(state, 11).to(torch.float64) * 2.0**-53


def _mix(state: Tensor) -> Tensor:
    """SplitMix64's finaliser (Stafford's Mix13); products of int64 wrap like unsigned ones."""
    state = (state ^ _shift(state, 30)) * _signed(FIRST)
    state = (state ^ _shift(state, 27)) * _signed(SECOND)
    return state ^ _shift(state, 31)


def _shift(state: Tensor, bits: int) -> Tensor:
    """Logical shift to the right: torch has only the arithmetic one for int64."""
    return (state >> bits) & ((1 << (64 - bits)) - 1)


def _signed(value: int) -> int:
    """Return the int64 with the low 64 bits of `value`."""
    value &= _MASK
    return value - (1 << 64) if value >> 63 else value
