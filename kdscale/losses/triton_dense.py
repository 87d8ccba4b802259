"""Softmax, divergence and gradient of a chunk beside a teacher's logits in one kernel, in Triton.

Both logits are read twice, for other divergences than the forward KL three times, and the student's
are overwritten once by their gradient. For a divergence D with dD/dq_v = g_v

    d(T^2 D)/dz_v = T q_v (g_v - sum_u q_u g_u)

so that D and the sum take a pass of their own. A program has one position.
"""

# Arguments of kernels are pointers and numbers of Triton's, which have no types for mypy.
# mypy: disable-error-code="no-untyped-def,misc"

from typing import Any

import torch
import triton
import triton.language as tl

from kdscale.losses.triton_chunk import (
    LEAST_LOG,
    added,
    log_ratio,
    logits_of_block,
    sum_of_lanes,
    transformed,
)

# Keeps a product with q, which is 0 there, a number.
_FAR: tl.constexpr = tl.constexpr(-1000.0)
# What both sides of a mixture have nothing of has no logarithm.
_LEAST_MIXTURE: tl.constexpr = tl.constexpr(1e-37)
_BLOCK = 4096
_WARPS = 16


@triton.jit
def _divergence(log_p, log_q, share, KIND: tl.constexpr):
    """Return terms of D and their derivatives g in q, but for a constant of all, which cancels.

    As in `divergences.py`; `share` is its alpha or beta.
    """
    p = tl.exp(log_p)
    q = tl.exp(log_q)
    log_q = tl.maximum(log_q, _FAR)
    log_p = tl.where(log_p == float("-inf"), LEAST_LOG, log_p)
    if KIND == "reverse_kl":
        slope = log_q - log_p
        terms = q * slope
    elif KIND == "jensen_shannon":
        log_m = tl.log(tl.maximum(share * p + (1 - share) * q, _LEAST_MIXTURE))
        slope = (1 - share) * (log_q - log_m)
        terms = share * p * (log_p - log_m) + q * slope
    elif KIND == "skewed_kl":
        m = tl.maximum(share * p + (1 - share) * q, _LEAST_MIXTURE)
        slope = (share - 1) * p / m
        terms = p * (log_p - tl.log(m))
    elif KIND == "skewed_reverse_kl":
        m = tl.maximum(share * q + (1 - share) * p, _LEAST_MIXTURE)
        ratio = log_q - tl.log(m)
        slope = ratio - share * q / m
        terms = q * ratio
    else:
        tl.static_assert(KIND == "total_variation")
        slope = tl.where(p > q, -0.5, tl.where(p < q, 0.5, 0.0))
        terms = slope * (q - p)
    return terms, slope


@triton.jit
def _mixed(own, theirs, share):
    """Return logits between the student's and, by that share, the teacher's; -inf as the latter."""
    return tl.where(theirs == float("-inf"), theirs, (1 - share) * own + share * theirs)


@triton.jit
def _norms(
    row,
    teacher_row,
    temperature,
    teacher_temperature,
    teacher_share,
    scale,
    cap,
    VOCAB: tl.constexpr,
    IS_MIXED: tl.constexpr,
    HAS_CAP: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Return log sums of exp: of the student at 1 and at its temperature, the teacher, the mixture.

    The last is that of the teacher where there is no mixture.
    """
    lanes = tl.arange(0, BLOCK)
    # Of logits: their maximum, and sums at temperature 1 and at that of the targets.
    lane_max = tl.full([BLOCK], float("-inf"), tl.float32)
    lane_sum = tl.zeros([BLOCK], tl.float32)
    warm_sum = tl.zeros([BLOCK], tl.float32)
    teacher_max = tl.full([BLOCK], float("-inf"), tl.float32)
    teacher_sum = tl.zeros([BLOCK], tl.float32)
    mixed_max = tl.full([BLOCK], float("-inf"), tl.float32)
    mixed_sum = tl.zeros([BLOCK], tl.float32)
    for start in range(0, VOCAB, BLOCK):
        value, _ = logits_of_block(row, start, lanes, scale, cap, VOCAB, HAS_CAP)
        new_max = tl.maximum(lane_max, value)
        lane_sum = added(lane_sum, lane_max, new_max, value, 1.0)
        warm_sum = added(warm_sum, lane_max, new_max, value, temperature)
        lane_max = new_max
        theirs, _ = logits_of_block(teacher_row, start, lanes, 1.0, cap, VOCAB, False)
        theirs = theirs / teacher_temperature
        new_max = tl.maximum(teacher_max, theirs)
        teacher_sum = added(teacher_sum, teacher_max, new_max, theirs, 1.0)
        teacher_max = new_max
        if IS_MIXED:
            mixed = _mixed(value / temperature, theirs, teacher_share)
            new_max = tl.maximum(mixed_max, mixed)
            mixed_sum = added(mixed_sum, mixed_max, new_max, mixed, 1.0)
            mixed_max = new_max
    top = tl.max(lane_max, 0)
    log_norm = top + tl.log(sum_of_lanes(lane_sum, lane_max, top, 1.0))
    warm_norm = top / temperature + tl.log(sum_of_lanes(warm_sum, lane_max, top, temperature))
    top = tl.max(teacher_max, 0)
    teacher_norm = top + tl.log(sum_of_lanes(teacher_sum, teacher_max, top, 1.0))
    mixed_norm = teacher_norm
    if IS_MIXED:
        top = tl.max(mixed_max, 0)
        mixed_norm = top + tl.log(sum_of_lanes(mixed_sum, mixed_max, top, 1.0))
    return log_norm, warm_norm, teacher_norm, mixed_norm


@triton.jit
def _divergence_sums(
    row,
    teacher_row,
    temperature,
    teacher_temperature,
    warm_norm,
    teacher_norm,
    scale,
    cap,
    share,
    VOCAB: tl.constexpr,
    HAS_CAP: tl.constexpr,
    KIND: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Return D by lanes, [BLOCK], and sum_u q_u g_u."""
    lanes = tl.arange(0, BLOCK)
    soft = tl.zeros([BLOCK], tl.float32)
    slopes = tl.zeros([BLOCK], tl.float32)
    for start in range(0, VOCAB, BLOCK):
        value, _ = logits_of_block(row, start, lanes, scale, cap, VOCAB, HAS_CAP)
        theirs, _ = logits_of_block(teacher_row, start, lanes, 1.0, cap, VOCAB, False)
        log_p = theirs / teacher_temperature - teacher_norm
        log_q = value / temperature - warm_norm
        terms, slope = _divergence(log_p, log_q, share, KIND)
        soft += terms
        slopes += tl.exp(log_q) * slope
    return soft, tl.sum(slopes, 0)


@triton.jit
def _dense_kernel(
    logits,  # [C, V], rows `row_stride` apart: becomes the gradient
    row_stride,
    values,  # [C, 3] float32, see `dense_chunk`
    labels,  # [C] int64
    hard,  # [C] float32: weight of the label
    teacher,  # [C, V], rows `teacher_stride` apart
    teacher_stride,
    weight,
    temperature,
    teacher_temperature,
    teacher_share,
    scale,
    cap,
    share,
    VOCAB: tl.constexpr,
    IS_MIXED: tl.constexpr,
    HAS_CAP: tl.constexpr,
    KIND: tl.constexpr,
    BLOCK: tl.constexpr,
):
    position = tl.program_id(0).to(tl.int64)
    row = logits + position * row_stride
    teacher_row = teacher + position * teacher_stride
    label = tl.load(labels + position)
    pull_label = tl.load(hard + position)
    # A name that a loop assigns too would have to keep its type.
    at_label, _at_label_slope = transformed(tl.load(row + label), scale, cap, HAS_CAP)
    tl.debug_barrier()

    lanes = tl.arange(0, BLOCK)
    log_norm, warm_norm, teacher_norm, mixed_norm = _norms(
        row,
        teacher_row,
        temperature,
        teacher_temperature,
        teacher_share,
        scale,
        cap,
        VOCAB,
        IS_MIXED,
        HAS_CAP,
        BLOCK,
    )
    soft = tl.zeros([BLOCK], tl.float32)
    pull = 0.0
    if KIND != "forward_kl":
        soft, pull = _divergence_sums(
            row,
            teacher_row,
            temperature,
            teacher_temperature,
            warm_norm,
            teacher_norm,
            scale,
            cap,
            share,
            VOCAB,
            HAS_CAP,
            KIND,
            BLOCK,
        )

    rest = tl.zeros([BLOCK], tl.float32)
    for start in range(0, VOCAB, BLOCK):
        inside = start + lanes < VOCAB
        value, outer = logits_of_block(row, start, lanes, scale, cap, VOCAB, HAS_CAP)
        theirs, _ = logits_of_block(teacher_row, start, lanes, 1.0, cap, VOCAB, False)
        theirs = theirs / teacher_temperature
        log_p = theirs - teacher_norm
        p = tl.exp(log_p)
        q = tl.exp(value / temperature - warm_norm)
        if KIND == "forward_kl":
            log_q = log_ratio(value / temperature, warm_norm)
            if IS_MIXED:
                rest += tl.where(p > 0, p * (log_p - log_q), 0.0)
                p = tl.exp(_mixed(value / temperature, theirs, teacher_share) - mixed_norm)
            else:
                rest -= tl.where(p > 0, p * log_p, 0.0)
            soft -= p * log_q
            own = q - p
        else:
            rest -= tl.where(p > 0, p * log_p, 0.0)
            _, slope = _divergence(log_p, value / temperature - warm_norm, share, KIND)
            own = q * (slope - pull)
        gradient = pull_label * (
            tl.exp(value - log_norm) - tl.where(start + lanes == label, 1.0, 0.0)
        )
        # Of T^2 times the distillation.
        gradient = (gradient + weight * temperature * own) * outer
        tl.store(row + start + lanes, gradient.to(logits.dtype.element_ty), mask=inside)
    tl.store(values + 3 * position, -log_ratio(at_label, log_norm))
    tl.store(values + 3 * position + 1, tl.sum(soft, 0))
    tl.store(values + 3 * position + 2, tl.sum(rest, 0))


def dense_chunk(
    logits: torch.Tensor,
    values: torch.Tensor,
    labels: torch.Tensor,
    hard: torch.Tensor,
    teacher: torch.Tensor,
    weight: float,
    temperature: float,
    teacher_temperature: float,
    teacher_share: float | None,
    scale: float,
    softcap: float | None,
    kind: str = "forward_kl",
    share: float = 0.0,
) -> None:
    """Write the label's surprise, the distillation and a figure of the teacher to `values` [C, 3].

    As `sparse_chunk`, for targets p = softmax(`teacher` / `teacher_temperature`), [C, V] in any
    float type, and a student at `temperature`, whose square multiplies the distillation in the
    gradient, but not in `values`. The distillation is the soft cross-entropy, or the divergence
    `kind` with its alpha or beta, `share`; the figure is the entropy of p. With `teacher_share` the
    targets are between student and teacher as in TAID, with no gradient through them, and the
    figure is KL(p || q): `kind` is then the forward KL.
    """
    assert logits.stride(1) == teacher.stride(1) == 1, "rows of logits are not consecutive"
    kernel: Any = _dense_kernel
    kernel[(len(logits),)](
        logits,
        logits.stride(0),
        values,
        labels,
        hard,
        teacher,
        teacher.stride(0),
        weight,
        temperature,
        teacher_temperature,
        0.0 if teacher_share is None else teacher_share,
        scale,
        softcap or 1.0,
        share,
        VOCAB=logits.shape[1],
        IS_MIXED=teacher_share is not None,
        HAS_CAP=softcap is not None,
        KIND=kind,
        BLOCK=min(_BLOCK, triton.next_power_of_2(logits.shape[1])),
        num_warps=_WARPS,
    )
