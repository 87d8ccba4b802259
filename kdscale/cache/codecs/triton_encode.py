"""Encoding in two kernels in Triton, for GPUs, which read a chunk's logits once and a few again.

The first kernel sums up each block of 128 ids, relative to its own largest logit. The second adds
the blocks of a position up in float64, and then reads again only the blocks that have the largest
logits or that a draw falls on. A codec gets what its `select` gives with torch's operators, which
read and write float32 tensors of the size of the logits some ten times. Both round alike up to the
order in which they add, so that a draw at the very edge of an id may fall on its neighbour. Of
equal logits the lowest id comes first.

Every number of a position comes from its own row in a fixed order.
"""

# Arguments of kernels are pointers and numbers of Triton's, which have no types for mypy.
# mypy: disable-error-code="no-untyped-def,misc"

from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from kdscale.cache.codecs.vocab_blocks import BLOCK as _BLOCK

BLOCK: tl.constexpr = tl.constexpr(_BLOCK)
_LEAST: tl.constexpr = tl.constexpr(torch.finfo(torch.float32).min)
# Less this share of it, a float64 is the next smaller one.
_HALF_ULP: tl.constexpr = tl.constexpr(2.0**-53)
# Below it exp is 0 in float32: so small a probability is none, as with torch's operators.
_UNDERFLOW: tl.constexpr = tl.constexpr(-103.97208)
# Blocks that a program of the first kernel sums up: eight ids a thread, one load in bfloat16.
_ROWS = 16
_WARPS_OF_SUMS = 8


@triton.jit
def _logits_of(row, ids, temperature, VOCAB: tl.constexpr, IS_WARM: tl.constexpr):
    """Return the logits of `ids` in float32, -inf of padding."""
    z = tl.load(row + ids, mask=ids < VOCAB, other=float("-inf")).to(tl.float32)
    if IS_WARM:
        z = tl.div_rn(z, temperature)
    return z


@triton.jit
def _scale(base, top):
    """Return exp(base - top) in float64, of a block's largest logit and of the largest."""
    distance = base.to(tl.float64) - top
    return tl.where(distance > _UNDERFLOW, tl.exp(distance), 0.0)


@triton.jit
def _block_sums_kernel(
    logits,  # [P, V], rows `row_stride` apart
    row_stride,
    maxima,  # [P, N] float32: largest logit z of each block
    sums,  # [P, N] float32: of w = exp(z - maximum)
    moments,  # [P, N] float32: of w (z - maximum)
    blocks,  # N
    temperature,
    VOCAB: tl.constexpr,
    IS_WARM: tl.constexpr,
    ROWS: tl.constexpr,
):
    position = tl.program_id(0).to(tl.int64)
    block = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    ids = block[:, None] * BLOCK + tl.arange(0, BLOCK)[None, :]
    z = _logits_of(logits + position * row_stride, ids, temperature, VOCAB, IS_WARM)
    top = tl.max(z, 1)
    distance = z - tl.where(top == float("-inf"), 0.0, top)[:, None]
    weight = tl.exp(distance)
    at = position * blocks + block
    inside = block < blocks
    tl.store(maxima + at, top, mask=inside)
    tl.store(sums + at, tl.sum(weight, 1), mask=inside)
    # 0 * -inf would be no number.
    moment = tl.where(weight > 0, weight * distance, 0.0)
    tl.store(moments + at, tl.sum(moment, 1), mask=inside)


@triton.jit
def _statistics(position, maxima, sums, moments, entropy, log_norm, blocks, BLOCKS: tl.constexpr):
    """Write entropy and log_norm; return the maxima of blocks, the largest, and their masses.

    Masses are float64 and relative to the largest logit. Blocks past the vocabulary have none, and
    lose against all ids.
    """
    block = tl.arange(0, BLOCKS)
    at = position * blocks + block
    inside = block < blocks
    tops = tl.load(maxima + at, mask=inside, other=float("-inf"))
    top = tl.max(tops, 0).to(tl.float64)
    scale = _scale(tops, top)
    masses = tl.load(sums + at, mask=inside, other=0.0).to(tl.float64) * scale
    mass = tl.sum(masses, 0)
    moment = tl.load(moments + at, mask=inside, other=0.0).to(tl.float64) * scale
    moment += tl.where(masses > 0, masses * (tops.to(tl.float64) - top), 0.0)
    log_mass = tl.log(mass)
    tl.store(
        entropy + position, tl.maximum(log_mass - tl.sum(moment, 0) / mass, 0.0).to(tl.float32)
    )
    tl.store(log_norm + position, (top + log_mass).to(tl.float32))
    # As in `_next_largest`, ids without probability are before padding.
    tops = tl.where(inside, tl.maximum(tops, _LEAST), float("-inf"))
    return tops, top, masses


@triton.jit
def _follows(z, ids, last, last_id):
    """Return whether an id comes after the `last` one, from the largest logit down."""
    return (z < last) | ((z == last) & (ids > last_id))


@triton.jit
def _next_largest(
    row, tops, last, last_id, blocks, temperature, VOCAB: tl.constexpr, IS_WARM: tl.constexpr
):
    """Return the largest logit after the `last` one: itself, its id, its block, what follows there.

    `tops`: the largest logit of each block after the last one.
    """
    # Without numbers there is no largest one.
    block = tl.minimum(tl.argmax(tops, 0), blocks - 1)
    ids = block * BLOCK + tl.arange(0, BLOCK)
    z = tl.maximum(_logits_of(row, ids, temperature, VOCAB, IS_WARM), _LEAST)
    z = tl.where((ids < VOCAB) & _follows(z, ids, last, last_id), z, float("-inf"))
    largest, lane = tl.max(z, 0, return_indices=True)
    found = block * BLOCK + lane
    return largest, found, block, tl.where(ids == found, float("-inf"), z)


@triton.jit
def _locate(
    row,
    running,  # [N] float64: mass up to the end of each block
    maxima,  # [N] float32
    points,  # [SLOTS] float64, in [0, total)
    total,
    top,
    last,  # the last id that the masses have not, and all ids of larger logits
    last_id,
    blocks,
    temperature,
    VOCAB: tl.constexpr,
    IS_WARM: tl.constexpr,
    SEARCHES: tl.constexpr,
):
    """Return the ids [SLOTS] on which points of the running sum over ids fall."""
    points = tl.minimum(points, total - total * _HALF_ULP)
    low = tl.zeros_like(points).to(tl.int32)
    high = low + blocks - 1
    for _ in range(SEARCHES):
        middle = (low + high) // 2
        is_behind = tl.load(running + middle) <= points
        low = tl.where(is_behind, tl.minimum(middle + 1, high), low)
        high = tl.where(is_behind, high, middle)
    before = tl.load(running + low - 1, mask=low > 0, other=0.0)
    base = tl.load(maxima + low)
    ids = low[:, None] * BLOCK + tl.arange(0, BLOCK)[None, :]
    z = _logits_of(row, ids, temperature, VOCAB, IS_WARM)
    has_mass = (z > float("-inf")) & _follows(z, ids, last, last_id)
    weight = tl.where(has_mass, tl.exp(z - base[:, None]), 0.0)
    inside = tl.cumsum(weight.to(tl.float64), 1) * _scale(base, top)[:, None]
    # The block's own sum was rounded to float32, so the rest of a point may overshoot its end.
    whole = tl.max(inside, 1)
    rest = tl.maximum(tl.minimum(points - before, whole - whole * _HALF_ULP), 0.0)
    place = tl.sum((inside <= rest[:, None]).to(tl.int32), 1)
    return tl.minimum(low * BLOCK + place, VOCAB - 1)


@triton.jit
def _rounded(head, whole, steps, uniform):
    """Return the multiple of 1 / `steps` that a share of the mass is rounded to."""
    # A uniform next to 1 would round `steps` up.
    return tl.minimum(tl.floor(head / whole * steps + uniform), steps).to(tl.int32)


@triton.jit
def _take_head(
    row,
    maxima,
    masses,
    tops,
    top,
    blocks,
    temperature,
    VOCAB: tl.constexpr,
    IS_WARM: tl.constexpr,
    K: tl.constexpr,
    HEAD: tl.constexpr,
    BLOCKS: tl.constexpr,
    SLOTS: tl.constexpr,
):
    """Take the head's ids from the masses of blocks, from the most probable down.

    Returns how many, their ids [SLOTS], the head's mass up to the beginning and to the end of each,
    what is left of the masses, and the last one's logit and id.
    """
    block = tl.arange(0, BLOCKS)
    slot = tl.arange(0, SLOTS)
    mass = tl.sum(masses, 0)
    own = tl.zeros([SLOTS], tl.int32)
    begins = tl.zeros([SLOTS], tl.float64)
    ends = tl.zeros([SLOTS], tl.float64)
    taken = tl.zeros_like(mass)
    heads = 0
    last = float("inf")
    last_id = -1
    goes_on = True
    while (heads < HEAD) & goes_on:
        z, found, at, rest = _next_largest(
            row, tops, last, last_id, blocks, temperature, VOCAB, IS_WARM
        )
        base = tl.load(maxima + at)
        scale = _scale(base, top)
        value = tl.exp(z - base).to(tl.float64) * scale
        # Rounding can leave less than nothing; an id of probability 0 must not count as above it.
        goes_on = value > tl.maximum(mass - taken, 0.0) / (K - heads)
        if goes_on:
            taken += value
            # Added up again: what is left of a block is less than its sum was rounded by.
            left = tl.sum(tl.exp(rest - base), 0).to(tl.float64) * scale
            masses = tl.where(block == at, left, masses)
            tops = tl.where(block == at, tl.max(rest, 0), tops)
            own = tl.where(slot == heads, found, own)
            begins = tl.where(slot > heads, taken, begins)
            ends = tl.where(slot >= heads, taken, ends)
            last = z
            last_id = found
            heads += 1
    return heads, own, begins, ends, masses, last, last_id


@triton.jit
def _varopt_kernel(
    logits,  # [P, V], rows `row_stride` apart
    row_stride,
    maxima,  # [P, N] float32, as are the next two: of `_block_sums_kernel`
    sums,
    moments,
    uniforms,  # [P, 2] float64
    running,  # [P, N] float64: scratch
    codes,  # [P, HEAD] int32
    drawn,  # [P, K] int32
    entropy,  # [P] float32
    log_norm,  # [P] float32
    blocks,  # N
    temperature,
    steps,
    VOCAB: tl.constexpr,
    IS_WARM: tl.constexpr,
    K: tl.constexpr,
    HEAD: tl.constexpr,
    BLOCKS: tl.constexpr,
    SLOTS: tl.constexpr,
    SEARCHES: tl.constexpr,
):
    position = tl.program_id(0).to(tl.int64)
    row = logits + position * row_stride
    maxima_row = maxima + position * blocks
    running_row = running + position * blocks
    tops, top, masses = _statistics(
        position, maxima, sums, moments, entropy, log_norm, blocks, BLOCKS
    )
    heads, own, begins, ends, masses, last, last_id = _take_head(
        row,
        maxima_row,
        masses,
        tops,
        top,
        blocks,
        temperature,
        VOCAB,
        IS_WARM,
        K,
        HEAD,
        BLOCKS,
        SLOTS,
    )

    block = tl.arange(0, BLOCKS)
    slot = tl.arange(0, SLOTS)
    sums_so_far = tl.cumsum(masses, 0)
    tl.store(running_row + block, sums_so_far, mask=block < blocks)
    tail = tl.max(sums_so_far, 0)
    whole = tl.max(ends, 0) + tail
    uniform = tl.load(uniforms + 2 * position)
    code = _rounded(ends, whole, steps, uniform) - _rounded(begins, whole, steps, uniform)
    code = tl.where(slot < heads, code, steps + 1)
    tl.store(codes + position * HEAD + slot, code, mask=slot < HEAD)

    # The tail: one draw in each of as many equal parts of its mass as there are slots.
    tl.debug_barrier()
    draws = tl.maximum(slot - heads, 0) + tl.load(uniforms + 2 * position + 1)
    points = draws / (K - heads) * tail
    ids = _locate(
        row,
        running_row,
        maxima_row,
        points,
        tail,
        top,
        last,
        last_id,
        blocks,
        temperature,
        VOCAB,
        IS_WARM,
        SEARCHES,
    )
    tl.store(drawn + position * K + slot, tl.where(slot < heads, own, ids), mask=slot < K)


@dataclass(frozen=True)
class _Blocks:
    """Sums over blocks of P positions, and memory for the statistics of positions."""

    maxima: Tensor  # [P, N] float32
    sums: Tensor  # [P, N] float32
    moments: Tensor  # [P, N] float32
    entropy: Tensor  # [P] float32
    log_norm: Tensor  # [P] float32
    running: Tensor  # [P, N] float64

    @classmethod
    def of(cls, logits: Tensor, temperature: float) -> "_Blocks":
        """Sum up the blocks of [P, V] logits of any float type."""
        assert logits.stride(1) == 1, "rows of logits are not consecutive"
        positions, vocab_size = logits.shape
        count = triton.cdiv(vocab_size, _BLOCK)
        maxima, sums, moments = logits.new_empty(3, positions, count, dtype=torch.float32)
        entropy = logits.new_empty(positions, dtype=torch.float32)
        running = logits.new_empty(positions, count, dtype=torch.float64)
        rows = min(_ROWS, triton.next_power_of_2(count))
        kernel: Any = _block_sums_kernel
        kernel[(positions, triton.cdiv(count, rows))](
            logits,
            logits.stride(0),
            maxima,
            sums,
            moments,
            count,
            temperature,
            VOCAB=vocab_size,
            IS_WARM=temperature != 1.0,
            ROWS=rows,
            num_warps=_WARPS_OF_SUMS,
        )
        return cls(maxima, sums, moments, entropy, torch.empty_like(entropy), running)

    def options(self, logits: Tensor, temperature: float, slots: int) -> dict[str, Any]:
        """Return the options of a kernel that draws that many ids."""
        count = self.maxima.shape[1]
        padded = max(2, triton.next_power_of_2(slots))
        return {
            "VOCAB": logits.shape[1],
            "IS_WARM": temperature != 1.0,
            "BLOCKS": triton.next_power_of_2(count),
            "SLOTS": padded,
            "SEARCHES": (count - 1).bit_length(),
            # A thread holds up to 32 numbers of the blocks that are read again, and sums of 8.
            "num_warps": min(16, max(4, padded // 8, triton.next_power_of_2(count) // 256)),
        }


def varopt(
    logits: Tensor, uniforms: Tensor, k: int, head: int, steps: int, temperature: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return entropy and log_norm [P] float32, codes [P, H] and ids [P, K] int32, as `Varopt` does.

    `logits` [P, V] of any float type, `uniforms` [P, 2] float64; `steps`: the code of the mass 1.
    """
    positions = len(logits)
    blocks = _Blocks.of(logits, temperature)
    codes = logits.new_empty(positions, head, dtype=torch.int32)
    ids = logits.new_empty(positions, k, dtype=torch.int32)
    kernel: Any = _varopt_kernel
    kernel[(positions,)](
        logits,
        logits.stride(0),
        blocks.maxima,
        blocks.sums,
        blocks.moments,
        uniforms.contiguous(),
        blocks.running,
        codes,
        ids,
        blocks.entropy,
        blocks.log_norm,
        blocks.maxima.shape[1],
        temperature,
        steps,
        K=k,
        HEAD=head,
        **blocks.options(logits, temperature, k),
    )
    return blocks.entropy, blocks.log_norm, codes, ids
