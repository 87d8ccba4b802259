"""Attention weights of real architectures: which give them, which are refused."""

from typing import Any

import pytest
import torch

from kdscale.config.teacher import ModelConfig
from kdscale.errors import KdscaleError
from kdscale.models.attention import check_attention
from kdscale.models.head import ModelWithHead
from kdscale.models.load import build_model, make_config
from kdscale.models.modes import checkpoint_activations

VOCAB = 50
CPU = torch.device("cpu")
LLAMA = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
}
GPT2 = {"n_embd": 16, "n_layer": 2, "n_head": 2}
QWEN3_NEXT = {
    **LLAMA,
    "head_dim": 8,
    "num_experts": 2,
    "num_experts_per_tok": 1,
    "num_hidden_layers": 4,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 2,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
}


def made(architecture: str, options: dict[str, Any], **fields: Any) -> ModelWithHead:
    special = {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0}
    config = ModelConfig(architecture=architecture, options=options)
    model = build_model(make_config(config, VOCAB, special, 16), 0)
    return ModelWithHead(model, VOCAB, **{"gives_attention": True, **fields})


@pytest.mark.parametrize(
    ("architecture", "options"),
    [
        ("llama", LLAMA),
        ("gemma2", {**LLAMA, "head_dim": 8}),
        ("gpt2", {**GPT2, "attn_pdrop": 0.0}),
        (
            "opt",
            {
                "hidden_size": 16,
                "ffn_dim": 24,
                "num_hidden_layers": 2,
                "num_attention_heads": 2,
                "word_embed_proj_dim": 16,
            },
        ),
    ],
)
def test_weights_are_those_of_each_document(architecture: str, options: dict[str, Any]) -> None:
    """A query's weights sum to 1 over its own document, and are the same packed as alone."""
    model = made(architecture, options)
    model.train()(check_attention, CPU)
    model.eval()
    ids = torch.randint(VOCAB, (1, 10), generator=torch.Generator().manual_seed(0))
    segments = torch.tensor([[1] * 4 + [2] * 6])
    with torch.no_grad():
        packed = model.hidden_and_layers(ids, segments, ["attention"])[1]["attention"]
        alone = model.hidden_and_layers(ids[:, 4:], segments[:, 4:], ["attention"])[1]["attention"]
    assert len(packed) == 2
    for whole, part in zip(packed, alone, strict=True):
        assert whole.shape == (1, 10, 10)
        assert torch.allclose(whole.sum(-1), torch.ones(1, 10))
        assert torch.all(whole[:, 4:, :4] == 0)
        assert torch.allclose(whole[:, 4:, 4:], part, atol=1e-6)


@pytest.mark.parametrize(
    ("architecture", "options", "layers"),
    [("mamba", {"hidden_size": 16, "num_hidden_layers": 2}, 2), ("qwen3_next", QWEN3_NEXT, 4)],
)
def test_an_architecture_without_weights_in_every_layer_is_refused(
    architecture: str, options: dict[str, Any], layers: int
) -> None:
    with pytest.raises(KdscaleError, match=rf"{architecture}' does not give .* of {layers} layers"):
        made(architecture, options)(check_attention, CPU)
    made(architecture, options, gives_attention=False)(check_attention, CPU)


def test_dropout_of_weights_is_refused_where_it_acts() -> None:
    model = made("gpt2", GPT2)
    with pytest.raises(KdscaleError, match=r"dropout changes those of the student \('gpt2'\)"):
        model.train()(check_attention, CPU)
    assert model.training
    # As a teacher it is never in training mode.
    model.eval()(check_attention, CPU)
    assert not model.training


def test_weights_have_their_gradient_where_activations_are_computed_again() -> None:
    found = []
    for checkpointed in (False, True):
        model = made("llama", LLAMA).train()
        if checkpointed:
            checkpoint_activations(model.model)
        ids = torch.arange(12).view(1, 12)
        layers = model.hidden_and_layers(ids, torch.ones_like(ids), ["attention"])[1]
        sum(weights.square().sum() for weights in layers["attention"]).backward()
        found.append({n: p.grad for n, p in model.named_parameters() if p.grad is not None})
    kept, again = found
    assert set(kept) == set(again)
    assert any("q_proj" in name for name in kept)
    for name, gradient in kept.items():
        assert torch.allclose(again[name], gradient, rtol=1e-5, atol=1e-7), name
