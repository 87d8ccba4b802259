"""Products of half-precision matrices into float32 memory: sums are rounded once, at their end.

A GPU adds up such products in float32 anyway; with `out_dtype` it writes them so. torch has no such
operation for CPUs, where factors are cast first: their products fit into float32, so that numbers
differ by no more than the order of sums.
"""

from functools import cache

import torch

HALVES = (torch.bfloat16, torch.float16)


def multiply(left: torch.Tensor, right: torch.Tensor, out: torch.Tensor) -> None:
    """Write `left` [C, K] times `right` [K, N] to `out` [C, N], float32 or of their dtype.

    In place where dtypes allow: fresh memory would have to be mapped first, each time.
    """
    if left.dtype == out.dtype:
        torch.mm(left, right, out=out)
    elif left.dtype not in HALVES:
        out.copy_(left @ right)
    elif _widens(left.device.type):
        torch.mm(left, right, out_dtype=out.dtype, out=out)
    else:
        torch.mm(left.float(), right.float(), out=out)


def add_product(left: torch.Tensor, right: torch.Tensor, out: torch.Tensor) -> None:
    """Add `left` [C, K] times `right` [K, N] to `out` [C, N], float32 or of their dtype."""
    if left.dtype == out.dtype:
        out.addmm_(left, right)
    elif left.dtype not in HALVES:
        out.add_(left @ right)
    elif _adds(left.device.type):
        torch.addmm(out, left, right, out_dtype=out.dtype, out=out)
    elif _widens(left.device.type):
        out.add_(torch.mm(left, right, out_dtype=out.dtype))
    else:
        out.addmm_(left.float(), right.float())


@cache
def _widens(device: str) -> bool:
    """Return whether torch multiplies halves into float32 there."""
    half, wide = _small(device)
    try:
        torch.mm(half, half, out_dtype=torch.float32, out=wide)
    except RuntimeError:
        return False
    return True


@cache
def _adds(device: str) -> bool:
    """Return whether torch adds such a product to float32; 2.9 adds it to halves alone."""
    half, wide = _small(device)
    try:
        torch.addmm(wide, half, half, out_dtype=torch.float32, out=wide)
    except RuntimeError:
        return False
    return True


def _small(device: str) -> tuple[torch.Tensor, torch.Tensor]:
    half = torch.zeros(16, 16, dtype=torch.bfloat16, device=device)
    return half, torch.zeros(16, 16, device=device)
