"""Ids and codes as whole bytes, little endian, which is what a payload holds.

The one place that makes ids smaller is the stored form (kdscale/cache/format/packing.py).
"""

import torch
from torch import Tensor

MAX_IDS = 1 << 24
"""Largest vocabulary: the ids of 3 bytes."""

_WORD = 4


def id_bytes(vocab_size: int) -> int:
    """Return the bytes of an id: 2 where the vocabulary has at most 65,536 ids, else 3."""
    assert vocab_size <= MAX_IDS
    return 2 if vocab_size <= 1 << 16 else 3


def to_bytes(numbers: Tensor, size: int) -> Tensor:
    """[..., K] integers in 0 .. 256^size - 1, size 1 to 3 -> [..., K * size] uint8."""
    words = numbers.to(torch.int32).unsqueeze(-1)
    return words.view(torch.uint8)[..., :size].flatten(-2)


def from_bytes(payload: Tensor, size: int) -> Tensor:
    """[..., K * size] uint8 -> [..., K] int64, the inverse of `to_bytes`."""
    numbers = payload.unflatten(-1, (-1, size))
    words = numbers.new_zeros((*numbers.shape[:-1], _WORD))
    # By column: copying a few bytes for each id takes three times as long.
    for byte in range(size):
        words[..., byte] = numbers[..., byte]
    return words.view(torch.int32).squeeze(-1).long()
