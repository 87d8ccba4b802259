"""Softmax, loss and gradient of a chunk of logits in one kernel, for GPUs, in Triton.

Logits are read twice and overwritten once by their gradient: 6 bytes a logit in bfloat16. Formulas
are those of `chunk.py`, for sparse targets that share the labels' softmax, with or without a ghost
bucket; a teacher's logits are those of `triton_dense.py`. A program has one position. What is
listed is gathered before any of it is overwritten, and written last: at these ids the gradient is a
difference of numbers of one size, which is rounded once. The label is an entry like the listed ids,
and all entries of an id add up.
"""

# Arguments of kernels are pointers and numbers of Triton's, which have no types for mypy.
# mypy: disable-error-code="no-untyped-def,misc"

from typing import Any

import torch
import triton
import triton.language as tl

LEAST_LOG: tl.constexpr = tl.constexpr(-87.33654475055310)  # of the smallest normal float32
_BLOCK = 8192
_WARPS = 16


@triton.jit
def log_ratio(z, log_norm):
    """Return log q, where nothing counts for less than 1.2e-38."""
    return tl.maximum(z - log_norm, LEAST_LOG)


@triton.jit
def transformed(raw, scale, cap, HAS_CAP: tl.constexpr):
    """Return the logits of a head's products, and the slope of that."""
    z = raw.to(tl.float32) * scale
    slope = tl.zeros_like(z) + scale
    if HAS_CAP:
        # The hyperbolic tangent.
        t = 2 * tl.sigmoid(2 * z / cap) - 1
        z = cap * t
        slope = scale * (1 - t * t)
    return z, slope


@triton.jit
def logits_of_block(row, start, lanes, scale, cap, VOCAB: tl.constexpr, HAS_CAP: tl.constexpr):
    """Return a block's logits, -inf where there are none, and their slope in the products."""
    raw = tl.load(row + start + lanes, mask=start + lanes < VOCAB, other=float("-inf"))
    value, slope = transformed(raw, scale, cap, HAS_CAP)
    # A cap makes -inf a number.
    inside = raw.to(tl.float32) > float("-inf")
    return tl.where(inside, value, float("-inf")), slope


@triton.jit
def added(total, old_max, new_max, value, temperature):
    """Return sums of exp((z - new_max) / T): the `total`, which was over old_max, and `value`."""
    base = tl.where(new_max == float("-inf"), 0.0, new_max)
    kept = total * tl.exp((old_max - base) / temperature)
    return kept + tl.exp((value - base) / temperature)


@triton.jit
def sum_of_lanes(lane_sum, lane_max, top, temperature):
    """Return the sum over all lanes, over their maximum `top`."""
    return tl.sum(lane_sum * tl.exp((lane_max - top) / temperature), 0)


@triton.jit
def _sparse_kernel(
    logits,  # [C, V], rows `row_stride` apart: becomes the gradient
    row_stride,
    labels,  # [C] int64
    hard,  # [C] float32: weight of the label
    ids,  # [C, K] int64
    probs,  # [C, K] float32
    ghosts,  # [C] float32
    values,  # [C, 3] float32: surprise of the label, soft cross-entropy; the last is left alone
    weight,
    scale,
    cap,
    VOCAB: tl.constexpr,
    K: tl.constexpr,
    ENTRIES: tl.constexpr,
    HAS_GHOST: tl.constexpr,
    HAS_CAP: tl.constexpr,
    BLOCK: tl.constexpr,
):
    position = tl.program_id(0).to(tl.int64)
    row = logits + position * row_stride
    label = tl.load(labels + position)
    pull_label = tl.load(hard + position)

    # Entries: K ids, then the label, then nothing.
    entry = tl.arange(0, ENTRIES)
    is_listed = entry < K
    listed = tl.load(ids + position * K + entry, mask=is_listed, other=-1)
    p = tl.load(probs + position * K + entry, mask=is_listed, other=0.0)
    entry_ids = tl.where(entry == K, label, listed)
    is_entry = entry <= K
    raw = tl.load(row + entry_ids, mask=is_entry, other=0.0)
    z, slope = transformed(raw, scale, cap, HAS_CAP)
    mass = tl.sum(p, 0)
    if HAS_GHOST:
        ghost = tl.load(ghosts + position)
        mass += ghost
        # The rest is added up on its own: as a difference it would be wrong where it is small.
        tl.debug_barrier()
        tl.store(row + entry_ids, float("-inf"), mask=is_listed)
    tl.debug_barrier()

    lanes = tl.arange(0, BLOCK)
    lane_max = tl.full([BLOCK], float("-inf"), tl.float32)
    lane_sum = tl.zeros([BLOCK], tl.float32)
    for start in range(0, VOCAB, BLOCK):
        value, _ = logits_of_block(row, start, lanes, scale, cap, VOCAB, HAS_CAP)
        new_max = tl.maximum(lane_max, value)
        lane_sum = added(lane_sum, lane_max, new_max, value, 1.0)
        lane_max = new_max
    top = tl.max(lane_max, 0)
    if HAS_GHOST:
        top = tl.maximum(top, tl.max(tl.where(is_listed, z, float("-inf")), 0))
    rest = sum_of_lanes(lane_sum, lane_max, top, 1.0)
    whole = rest
    if HAS_GHOST:
        whole += tl.sum(tl.where(is_listed, tl.exp(z - top), 0.0), 0)
    log_norm = top + tl.log(whole)

    # Values.
    log_q = log_ratio(z, log_norm)
    surprise = -tl.sum(tl.where(entry == K, log_q, 0.0), 0)
    soft = -tl.sum(p * log_q, 0)
    elsewhere = pull_label + weight * mass
    pull = elsewhere
    if HAS_GHOST:
        rest_share = rest / whole
        soft -= ghost * tl.maximum(tl.log(rest_share), LEAST_LOG)
        elsewhere -= weight * tl.where(rest_share > 0, ghost / rest_share, 0.0)
    tl.store(values + 3 * position, surprise)
    tl.store(values + 3 * position + 1, soft)

    # Gradient: of all ids, then of the listed ones.
    for start in range(0, VOCAB, BLOCK):
        value, block_slope = logits_of_block(row, start, lanes, scale, cap, VOCAB, HAS_CAP)
        gradient = elsewhere * tl.exp(value - log_norm) * block_slope
        inside = start + lanes < VOCAB
        tl.store(row + start + lanes, gradient.to(logits.dtype.element_ty), mask=inside)
    tl.debug_barrier()
    taken = tl.where(entry == K, pull_label, weight * p)
    same = entry_ids[:, None] == entry_ids[None, :]
    taken_of_id = tl.sum(tl.where(same & is_entry[None, :], taken[None, :], 0.0), 1)
    kept = pull
    if HAS_GHOST:
        # A label that is not listed belongs to the rest.
        is_of_list = tl.sum(tl.where(same & is_listed[None, :], 1, 0), 1) > 0
        kept = tl.where(is_of_list, pull, elsewhere)
    own = (kept * tl.exp(z - log_norm) - taken_of_id) * slope
    tl.store(row + entry_ids, own.to(logits.dtype.element_ty), mask=is_entry)


def sparse_chunk(
    logits: torch.Tensor,
    values: torch.Tensor,
    labels: torch.Tensor,
    hard: torch.Tensor,
    ids: torch.Tensor,
    probs: torch.Tensor,
    ghost: torch.Tensor | None,
    weight: float,
    scale: float,
    softcap: float | None,
) -> None:
    """Write the label's surprise and the soft cross-entropy to `values` [C, 3] float32, in nats.

    `logits` [C, V] are a head's products in any float type, rows of memory: they become the
    gradient in them of `weight` times the soft cross-entropy plus `hard` times the surprise, where
    `hard` is [C] float32, and the logits are these products times `scale`, capped. `labels` [C]
    int64, `ids` [C, K] int64, `probs` [C, K] and `ghost` [C] float32.
    """
    positions, count = ids.shape
    assert logits.stride(1) == 1, "rows of logits are not consecutive"
    kernel: Any = _sparse_kernel
    kernel[(positions,)](
        logits,
        logits.stride(0),
        labels,
        hard,
        ids.contiguous(),
        probs.contiguous(),
        probs if ghost is None else ghost,
        values,
        weight,
        scale,
        softcap or 1.0,
        VOCAB=logits.shape[1],
        K=count,
        ENTRIES=max(2, triton.next_power_of_2(count + 1)),
        HAS_GHOST=ghost is not None,
        HAS_CAP=softcap is not None,
        BLOCK=min(_BLOCK, triton.next_power_of_2(logits.shape[1])),
        num_warps=_WARPS,
    )
