"""The fused loss with every kind of target, on fake CUDA tensors, as DDP and ZeRO run it."""

from contextlib import nullcontext
from functools import partial
from typing import Any

import pytest
import torch

from kdscale.cache.codecs import make_codec
from kdscale.config.cache import CodecConfig, FullCodec, SampleCodec, TopkCodec, VaroptCodec
from kdscale.distill.taid import InterpolatedTargets
from kdscale.distill.targets import BatchTargets, CachedTargets, ClassifiedTargets, OnlineTargets
from kdscale.losses import divergences, kernels
from kdscale.losses.classes import ClassMap, Members
from kdscale.losses.divergences import Divergence
from kdscale.losses.fused import Objective, head_and_loss
from kdscale.types import Head
from tests.gpu.fake_cuda import CUDA, Record

POSITIONS, WIDTH, VOCAB = 3000, 64, 4000
CODECS: dict[str, CodecConfig] = {
    "varopt": VaroptCodec(),
    "topk": TopkCodec(),
    "topk of 8 bits": TopkCodec(value_bits=8),
    "sample": SampleCodec(),
    "weighted sample": SampleCodec(tau=0.8),
    "full": FullCodec(),
}
DIVERGENCES: dict[str, Divergence] = {
    "forward_kl": divergences.forward_kl_sum,
    "reverse_kl": divergences.reverse_kl_sum,
    "jensen_shannon": partial(divergences.jensen_shannon_sum, beta=0.5),
    "skewed_kl": partial(divergences.skewed_kl_sum, alpha=0.1),
    "skewed_reverse_kl": partial(divergences.skewed_reverse_kl_sum, alpha=0.1),
    "adaptive_kl": partial(divergences.adaptive_kl_sum, head_mass=0.5),
    "total_variation": divergences.total_variation_sum,
    "logit_mse": divergences.logit_mse_sum,
}
# Made with values, as their sizes are read: of 20 ids each, which are wide, and of 2.
CLASSES = (
    ClassMap.of(torch.arange(VOCAB) % 200, torch.arange(VOCAB) % 200, 200),
    ClassMap.of(torch.arange(VOCAB) % 2000, torch.arange(VOCAB) % 2000, 2000),
)
# Weights in float32 with bfloat16 by autocast, and weights in bfloat16.
BACK_ENDS = ("ddp", "zero")


def cached(name: str) -> CachedTargets:
    codec = make_codec(CODECS[name], VOCAB)
    shape = (POSITIONS, codec.bytes_per_position)
    payload = torch.empty(shape, dtype=torch.uint8, device=CUDA)
    return CachedTargets(codec, payload, torch.empty((), device=CUDA), 1.0)


def online() -> OnlineTargets:
    weight = torch.empty(VOCAB, 2 * WIDTH, dtype=torch.bfloat16, device=CUDA)
    hidden = torch.empty(POSITIONS, 2 * WIDTH, dtype=torch.bfloat16, device=CUDA)
    return OnlineTargets(Head(weight, None, VOCAB), hidden, 2.0, {})


def taid() -> InterpolatedTargets:
    return InterpolatedTargets(online(), 0.5)


def on_device(value: Any) -> Any:
    """Return classes, or members of some, with all their tensors on the device."""
    if isinstance(value, torch.Tensor):
        return value.to(CUDA)
    if isinstance(value, ClassMap | Members):
        return type(value)(*map(on_device, vars(value).values()))
    return value


def classified(classes: ClassMap) -> ClassifiedTargets:
    codec = make_codec(CODECS["varopt"], VOCAB)
    shape = (POSITIONS, codec.bytes_per_position)
    payload = torch.empty(shape, dtype=torch.uint8, device=CUDA)
    has_target = torch.empty(POSITIONS, dtype=torch.bool, device=CUDA)
    return ClassifiedTargets(codec, payload, has_target, on_device(classes))


def compute(
    back_end: str,
    targets: BatchTargets | None,
    objective: Objective | None = None,
    *,
    weighted: bool = False,
    **head: Any,
) -> None:
    """Compute a loss and its gradients as `back_end` does."""
    dtype = torch.float32 if back_end == "ddp" else torch.bfloat16
    hidden = torch.empty(POSITIONS, WIDTH, dtype=dtype, device=CUDA, requires_grad=True)
    weight = torch.empty(VOCAB + 64, WIDTH, dtype=dtype, device=CUDA, requires_grad=True)
    bias = torch.empty(VOCAB + 64, dtype=dtype, device=CUDA, requires_grad=True)
    labels = torch.empty(POSITIONS, dtype=torch.int64, device=CUDA)
    weights = torch.empty(POSITIONS, device=CUDA) if weighted else None
    context = torch.autocast("cuda", torch.bfloat16) if back_end == "ddp" else nullcontext()
    with context:
        found = head_and_loss(
            hidden,
            Head(weight, bias if head else None, VOCAB, **head),
            labels,
            None if targets is None else targets.at,
            objective or Objective(0.5),
            weights,
        )
        if targets is not None:
            targets.kl(found.distillation)


def check(record: Record) -> None:
    assert record.products(torch.bfloat16)
    assert record.products(torch.float32) == []
    assert not record.syncs


@pytest.mark.parametrize("back_end", BACK_ENDS)
def test_labels_alone(record: Record, back_end: str) -> None:
    compute(back_end, None)
    check(record)


@pytest.mark.parametrize("back_end", BACK_ENDS)
@pytest.mark.parametrize("codec", CODECS)
def test_cached_targets(record: Record, codec: str, back_end: str) -> None:
    compute(back_end, cached(codec))
    check(record)


@pytest.mark.parametrize("back_end", BACK_ENDS)
def test_heads_with_bias_scale_and_cap_and_weighted_labels(record: Record, back_end: str) -> None:
    compute(back_end, cached("varopt"), weighted=True, scale=0.5, softcap=30.0)
    compute(back_end, cached("varopt"), Objective(0.5, 2.0))
    check(record)


@pytest.mark.parametrize("back_end", BACK_ENDS)
@pytest.mark.parametrize("make", [online, taid])
def test_targets_of_an_online_teacher(record: Record, make: Any, back_end: str) -> None:
    compute(back_end, make(), Objective(0.5, 2.0))
    check(record)


@pytest.mark.parametrize("name", DIVERGENCES)
def test_divergences(record: Record, name: str) -> None:
    compute("ddp", online(), Objective(0.5, 2.0, DIVERGENCES[name]))
    if name != "logit_mse":
        compute("ddp", cached("topk"), Objective(0.5, 1.0, DIVERGENCES[name]))
    check(record)


@pytest.mark.parametrize("back_end", BACK_ENDS)
@pytest.mark.parametrize("classes", CLASSES, ids=["wide", "narrow"])
def test_targets_over_classes(record: Record, classes: ClassMap, back_end: str) -> None:
    targets = classified(classes)
    record.clear()
    compute(back_end, targets)
    check(record)


@pytest.mark.parametrize("back_end", BACK_ENDS)
def test_with_triton(record: Record, back_end: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "available", lambda device: device == "cuda")
    of_divergence = Objective(0.5, 2.0, DIVERGENCES["jensen_shannon"])
    for targets, objective, kernel in (
        (None, None, "sparse_chunk"),
        (cached("varopt"), None, "sparse_chunk"),
        (cached("topk"), None, "sparse_chunk"),
        (online(), None, "dense_chunk"),
        (taid(), Objective(0.5, 2.0), "dense_chunk"),
        (online(), of_divergence, "divergence_chunk"),
    ):
        record.clear()
        compute(back_end, targets, objective, weighted=True, scale=0.5, softcap=30.0)
        assert kernel in {each.name for each in record.operations}
        # Nothing of the logits' size is in float32.
        assert max(each.nbytes for every in record.operations for each in every.outputs) <= max(
            2 * POSITIONS * (VOCAB + 64), 4 * (VOCAB + 64) * WIDTH
        )
        check(record)
