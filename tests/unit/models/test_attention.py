"""Kernels of attention: packed documents with each, and which one is chosen for which model.

The reference is transformers with its own kernel, on one document at a time.
"""

import copy
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel, modeling_flash_attention_utils

from kdscale.errors import KdscaleError
from kdscale.models.attention import (
    FLASH,
    FLEX,
    additive,
    best_on_gpu,
    implementation,
    set_attention,
)
from kdscale.models.documents import Documents
from kdscale.models.forward import attention_inputs, compute_logits
from kdscale.models.sequence_check import check_sequences
from tests.alone import NO_CACHE, PACKED, logits_at, rows
from tests.architectures import VOCAB, tiny_model

CPU, GPU = torch.device("cpu"), torch.device("cuda")
# With windows of 16 tokens wherever the architecture has one, and documents of up to 100.
FLEXIBLE = (
    *("llama", "mistral", "gemma2", "gemma3_text", "qwen2", "qwen3", "qwen3_moe", "mixtral"),
    *("opt", "gpt_neox", "phi3", "olmo2", "cohere2", "llama4_text", "smollm3"),
)
WITH_BOUNDS = (
    *("llama", "mistral", "gemma2", "gemma3_text", "qwen2", "qwen3", "qwen3_moe", "mixtral"),
    *("phi3", "cohere2", "smollm3"),
)


@pytest.fixture
def eager() -> Iterator[None]:
    """Run what transformers compiles as it is: a compilation takes longer than the test."""
    with torch.compiler.set_stance("force_eager"):
        yield


def with_kernel(model: PreTrainedModel, name: str) -> PreTrainedModel:
    """Return a copy of the model that is set to a kernel, whatever machine this is."""
    made = copy.deepcopy(model)
    made.config._attn_implementation_internal = name
    return made


@torch.no_grad()
def worst_error(model: PreTrainedModel, other: PreTrainedModel, known: bool) -> float:
    """Return the largest difference of logits of `other` on rows from `model` on documents alone.

    In standard deviations of logits.
    """
    ids, segments, documents = rows()
    given = Documents.of(segments.numpy(), CPU) if known else None
    found = compute_logits(other, ids, segments, VOCAB, given)
    worst = 0.0
    for row, start, own in documents:
        alone = model(input_ids=own[None], **NO_CACHE).logits[0, :, :VOCAB]
        error = (found[row, start : start + len(own)] - alone).abs().max() / alone.std()
        worst = max(worst, error.item())
    return worst


@pytest.mark.usefixtures("eager")
@pytest.mark.parametrize("kind", FLEXIBLE)
def test_flex_attention_keeps_packed_documents_apart_past_the_window(kind: str) -> None:
    model = tiny_model(kind)
    flexible = with_kernel(model, FLEX)
    assert flexible._supports_flex_attn
    assert worst_error(model, flexible, known=True) < 1e-4
    inputs = attention_inputs(flexible, rows()[1])
    masks = inputs["attention_mask"]
    for mask in masks.values() if isinstance(masks, dict) else [masks]:
        assert not isinstance(mask, torch.Tensor)  # blocks, and no [T, T]


def varlen(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    cu_seqlens_q: torch.Tensor,
    cu_seqlens_k: torch.Tensor,
    max_seqlen_q: int,
    max_seqlen_k: int,
    dropout_p: float = 0.0,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: tuple[int, int] = (-1, -1),
    softcap: float = 0.0,
    deterministic: bool = False,
) -> torch.Tensor:
    """Compute what flash_attn_varlen_func documents, document by document; [N, heads, size]."""
    assert cu_seqlens_q.dtype == torch.int32
    assert causal
    assert torch.equal(cu_seqlens_q, cu_seqlens_k)
    assert max_seqlen_q == max_seqlen_k == int(cu_seqlens_q.diff().max())
    outputs = []
    for start, end in zip(cu_seqlens_q[:-1].tolist(), cu_seqlens_q[1:].tolist(), strict=True):
        groups = q.shape[1] // k.shape[1]
        keys, values = (x[start:end].repeat_interleave(groups, dim=1) for x in (k, v))
        scale = softmax_scale or q.shape[-1] ** -0.5
        scores = scale * torch.einsum("qhd,khd->hqk", q[start:end], keys)
        if softcap:
            scores = softcap * torch.tanh(scores / softcap)
        index = torch.arange(end - start)
        seen = index[:, None] >= index
        if window_size[0] >= 0:
            seen &= index[:, None] - index <= window_size[0]
        weights = scores.masked_fill(~seen, -torch.inf).softmax(-1)
        outputs.append(torch.einsum("hqk,khd->qhd", weights, values))
    return torch.cat(outputs)


@pytest.mark.parametrize("kind", WITH_BOUNDS)
def test_flash_attention_gets_the_bounds_of_documents(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a stand-in for the kernel, which runs on no CPU; all of transformers' own way to it."""
    kernels = (varlen, varlen, None, None, None)
    monkeypatch.setattr(modeling_flash_attention_utils, "_lazy_imports", lambda *_, **__: kernels)
    monkeypatch.setattr(modeling_flash_attention_utils, "_loaded_implementation", None)
    model = tiny_model(kind)
    flashing = with_kernel(model, FLASH)
    assert worst_error(model, flashing, known=True) < 1e-4
    assert worst_error(model, flashing, known=False) < 1e-4
    assert "attention_mask" not in attention_inputs(flashing, rows()[1])


@pytest.mark.parametrize("kind", ["llama", "gemma3_text"])
def test_an_additive_mask_is_the_boolean_one_made_once(kind: str) -> None:
    ids, segments, _ = rows()
    model = tiny_model(kind).double()
    inputs = attention_inputs(model, segments)
    masks = inputs["attention_mask"]
    made = additive(masks, torch.float64)
    expected = model(input_ids=ids, **NO_CACHE, **inputs).logits
    found = model(input_ids=ids, **NO_CACHE, **inputs | {"attention_mask": made}).logits
    torch.testing.assert_close(found[segments != 0], expected[segments != 0])
    for mask in made.values() if isinstance(made, dict) else [made]:
        assert mask.dtype == torch.float64
    assert additive(None, torch.bfloat16) is None


@pytest.mark.parametrize(
    ("kind", "options", "packed", "single"),
    [
        ("llama", {}, FLEX, None),
        ("gemma2", {}, FLEX, FLEX),  # it would keep attention weights in memory
        ("gpt_oss", {}, FLEX, FLEX),
        ("llama", {"attention_dropout": 0.1}, None, None),
        ("gpt2", {}, None, None),
        ("bloom", {}, None, None),
    ],
)
def test_auto_takes_the_best_kernel_that_an_architecture_has(
    kind: str, options: dict[str, Any], packed: str | None, single: str | None
) -> None:
    model = tiny_model(kind, **options)
    assert best_on_gpu(model, packs=True) == packed
    assert best_on_gpu(model, packs=False) == single
    before = implementation(model)
    assert implementation(set_attention(model, "auto", CPU, packs=True)) == before
    assert implementation(set_attention(model, FLEX, CPU, packs=True)) == before
    assert implementation(set_attention(model, "auto", GPU, packs=True)) == (packed or before)


def test_a_kernel_that_is_asked_for_is_set_or_refused() -> None:
    llama = tiny_model("llama")
    assert implementation(set_attention(llama, FLEX, GPU, packs=False)) == FLEX
    assert implementation(set_attention(llama, "sdpa", CPU, packs=True)) == "sdpa"
    with pytest.raises(KdscaleError, match="'flash_attention_2': flash-attn is not installed"):
        set_attention(llama, FLASH, GPU, packs=True)
    with pytest.raises(KdscaleError, match=r"\(bloom\) does not take attention 'flex_attention'"):
        set_attention(tiny_model("bloom"), FLEX, GPU, packs=True)
    with pytest.raises(KdscaleError, match="no dropout of attention weights"):
        set_attention(tiny_model("llama", attention_dropout=0.1), FLEX, GPU, packs=True)
    with pytest.raises(KdscaleError, match="no such kernel"):
        set_attention(tiny_model("gpt_oss"), FLASH, GPU, packs=True)


@pytest.mark.usefixtures("eager")
def test_a_kernel_of_auto_that_fails_is_replaced_by_that_of_transformers(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Attention sinks are not computed by flex_attention on CPUs."""
    model = set_attention(tiny_model("gpt_oss"), "auto", GPU, packs=True)
    check_sequences(model, logits_at(model), PACKED)
    assert implementation(model) == "eager"
    assert "the attention kernel that was chosen fails: Attention sinks" in caplog.text
    chosen = tiny_model("gpt_oss")
    set_attention(chosen, FLEX, GPU, packs=True)
    with pytest.raises(ValueError, match="Attention sinks"):
        check_sequences(chosen, logits_at(chosen), PACKED)
