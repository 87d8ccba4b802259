"""Whole numbers of any width, packed without gaps.

An id of a vocabulary of V needs ceil(log2 V) bits, and at a dozen ids a position every bit counts.
Each column is shifted to its place once and its bytes are added where they belong, so packing is a
handful of tensor operations for any number of positions, on CPU and GPU alike.
"""

import torch
from torch import Tensor

MAX_WIDTH = 24
"""Widest number: with a shift of up to 7 bits it still touches no more than four bytes."""

_PLANES = 4


def width_for(count: int) -> int:
    """Bits that hold each of 0 .. count - 1; at least 1."""
    return max(1, (count - 1).bit_length())


def packed_bytes(columns: int, width: int) -> int:
    """Bytes that `columns` numbers of `width` bits take."""
    return (columns * width + 7) // 8


def pack(values: Tensor, width: int) -> Tensor:
    """[..., K] integers in 0 .. 2^width - 1 -> [..., packed_bytes(K, width)] uint8.

    Bits count from the least significant one of the first byte; number j starts at bit j * width.
    """
    assert 1 <= width <= MAX_WIDTH
    columns = values.shape[-1]
    offsets = torch.arange(columns, device=values.device) * width
    shifted = values.to(torch.int64) << (offsets & 7)
    size = packed_bytes(columns, width)
    packed = torch.zeros(
        (*values.shape[:-1], size + _PLANES), dtype=torch.uint8, device=values.device
    )
    for plane in range(_PLANES):
        # Neighbours share a byte but never a bit, so that adding them is joining them.
        part = ((shifted >> (8 * plane)) & 0xFF).to(torch.uint8)
        packed.index_add_(-1, (offsets >> 3) + plane, part)
    return packed[..., :size].contiguous()


def unpack(packed: Tensor, columns: int, width: int) -> Tensor:
    """[..., packed_bytes(columns, width)] uint8 -> [..., columns] int64, the inverse of `pack`."""
    assert 1 <= width <= MAX_WIDTH
    offsets = torch.arange(columns, device=packed.device) * width
    padded = torch.nn.functional.pad(packed, (0, _PLANES))
    joined = torch.zeros((*packed.shape[:-1], columns), dtype=torch.int64, device=packed.device)
    for plane in range(_PLANES):
        joined |= padded[..., (offsets >> 3) + plane].to(torch.int64) << (8 * plane)
    return (joined >> (offsets & 7)) & ((1 << width) - 1)
