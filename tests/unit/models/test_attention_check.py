"""Attention weights of real architectures: which give them, which are refused."""

import pytest
import torch

from kdscale.errors import KdscaleError
from kdscale.models.attention_check import check_attention
from kdscale.models.head import ModelWithHead
from kdscale.models.modes import checkpoint_activations
from tests.architectures import VOCAB, tiny_model

CPU = torch.device("cpu")


def made(architecture: str, gives_attention: bool = True, **options: float) -> ModelWithHead:
    model = tiny_model(architecture, **options)
    return ModelWithHead(model, VOCAB, gives_attention=gives_attention)


@pytest.mark.parametrize("architecture", ["llama", "gemma2", "gpt2", "opt"])
def test_weights_are_those_of_each_document(architecture: str) -> None:
    """A query's weights sum to 1 over its own document, and are the same packed as alone."""
    model = made(architecture, **({"attn_pdrop": 0.0} if architecture == "gpt2" else {}))
    model.train()(check_attention, CPU)
    model.eval()
    ids = torch.randint(VOCAB, (1, 10), generator=torch.Generator().manual_seed(0))
    segments = torch.tensor([[1] * 4 + [2] * 6])
    with torch.no_grad():
        packed = model.hidden_and_layers(ids, segments, ["attention"])[1]["attention"]
        alone = model.hidden_and_layers(ids[:, 4:], segments[:, 4:], ["attention"])[1]["attention"]
    assert len(packed) == 4
    for whole, part in zip(packed, alone, strict=True):
        assert whole.shape == (1, 10, 10)
        assert torch.allclose(whole.sum(-1), torch.ones(1, 10))
        assert torch.all(whole[:, 4:, :4] == 0)
        assert torch.allclose(whole[:, 4:, 4:], part, atol=1e-6)


@pytest.mark.parametrize("architecture", ["mamba", "qwen3_next"])
def test_an_architecture_without_weights_in_every_layer_is_refused(architecture: str) -> None:
    with pytest.raises(KdscaleError, match=rf"{architecture}' does not give .* of 4 layers"):
        made(architecture)(check_attention, CPU)
    made(architecture, gives_attention=False)(check_attention, CPU)


def test_dropout_of_weights_is_refused_where_it_acts() -> None:
    model = made("gpt2")
    with pytest.raises(KdscaleError, match=r"dropout changes those of the student \('gpt2'\)"):
        model.train()(check_attention, CPU)
    assert model.training
    # As a teacher it is never in training mode.
    model.eval()(check_attention, CPU)
    assert not model.training


def test_weights_have_their_gradient_where_activations_are_computed_again() -> None:
    found = []
    for checkpointed in (False, True):
        model = made("llama").train()
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
