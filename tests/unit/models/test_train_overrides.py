"""Dropout and activation checkpointing, set from outside on models of several architectures."""

from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

from kdscale.config.teacher import ModelConfig
from kdscale.errors import KdscaleError
from kdscale.models.load import build_model, load_model, make_config
from kdscale.models.modes import checkpoint_activations, set_dropout

SPECIAL = {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0}
LLAMA = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
}
OPTIONS: dict[str, dict[str, Any]] = {
    "llama": LLAMA,
    "qwen3": {**LLAMA, "head_dim": 8},
    "gpt2": {"n_embd": 16, "n_layer": 2, "n_head": 2},
    "gpt_neox": {name: size for name, size in LLAMA.items() if name != "num_key_value_heads"},
    "opt": {
        "hidden_size": 16,
        "word_embed_proj_dim": 16,
        "ffn_dim": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
    },
    "falcon": {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2},
    "mamba": {"hidden_size": 16, "num_hidden_layers": 1, "state_size": 4},
}
# What the config of each calls its dropouts; classifiers and GPT-2's summary are left alone.
NAMES = {
    "llama": ["attention_dropout"],
    "qwen3": ["attention_dropout"],
    "gpt2": ["resid_pdrop", "embd_pdrop", "attn_pdrop"],
    "gpt_neox": ["attention_dropout", "hidden_dropout"],
    "opt": ["dropout", "attention_dropout"],
    "falcon": ["attention_dropout", "hidden_dropout"],
}


def make(architecture: str) -> PreTrainedModel:
    config = ModelConfig(architecture=architecture, options=OPTIONS[architecture])
    return build_model(make_config(config, 32, SPECIAL, 16), 0)


def logits(model: PreTrainedModel, seed: int = 0) -> torch.Tensor:
    torch.manual_seed(seed)
    out: torch.Tensor = model(torch.arange(12)[None], use_cache=False).logits
    return out


@pytest.mark.parametrize("architecture", NAMES)
def test_dropout_is_set_in_modules_and_config(architecture: str) -> None:
    model = make(architecture)
    set_dropout(model, 0.0)
    model.train()
    whole = logits(model)
    assert torch.equal(whole, logits(model, seed=1)), "no dropout: nothing is random"

    set_dropout(model, 0.3)
    for name in NAMES[architecture]:
        assert getattr(model.config, name) == 0.3, name
    for module in model.modules():
        assert not isinstance(module, torch.nn.Dropout) or module.p == 0.3
    assert not torch.equal(logits(model), logits(model, seed=1))
    assert torch.equal(logits(model), logits(model))
    model.eval()
    torch.testing.assert_close(logits(model), whole, atol=1e-6, rtol=1e-5)


def test_what_is_no_dropout_of_units_stays() -> None:
    model = make("opt")
    set_dropout(model, 0.3)
    assert model.config.layerdrop == 0.0
    assert make("gpt2").config.summary_first_dropout == 0.1
    gpt2 = make("gpt2")
    set_dropout(gpt2, 0.3)
    assert gpt2.config.summary_first_dropout == 0.1


def test_the_rate_is_what_is_dropped() -> None:
    model = make("gpt2")
    set_dropout(model, 0.4)
    torch.manual_seed(0)
    dropped = model.transformer.drop.train()(torch.ones(100_000))
    assert (dropped == 0).float().mean().item() == pytest.approx(0.4, abs=0.01)


def test_a_model_with_other_dropout_is_saved_and_loaded(tmp_path: Any) -> None:
    model = make("gpt2")
    set_dropout(model, 0.3)
    model.save_pretrained(tmp_path)
    loaded = load_model(tmp_path)
    assert loaded.transformer.drop.p == 0.3
    assert torch.equal(logits(loaded.eval()), logits(model.eval()))


def test_an_architecture_without_dropout_is_refused() -> None:
    with pytest.raises(KdscaleError, match="'mamba' has no dropout to set"):
        set_dropout(make("mamba"), 0.1)


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_activation_checkpointing_keeps_logits_and_gradients(architecture: str) -> None:
    """With dropout: the second forward has to drop the same units as the first."""
    results = []
    for checkpointing in (False, True):
        model = make(architecture)
        set_dropout(model, 0.2)
        if checkpointing:
            checkpoint_activations(model)
        calls = count_forwards(model)
        model.train()
        out = logits(model)
        out.square().sum().backward()
        gradients = [p.grad.clone() for p in model.parameters() if p.grad is not None]
        results.append((out.detach(), gradients, len(calls)))
    (plain, expected, once), (found, gradients, twice) = results
    assert (once, twice) == (1, 2)
    assert torch.equal(found, plain)
    assert len(gradients) == len(expected) > 0
    for gradient, other in zip(gradients, expected, strict=True):
        assert torch.equal(gradient, other)


def count_forwards(model: PreTrainedModel) -> list[int]:
    """A list that grows with every forward of the first layer's norm."""
    calls: list[int] = []
    norms = [m for name, m in model.named_modules() if name.endswith(("ln_1", "input_layernorm"))]
    norms[0].register_forward_pre_hook(lambda module, inputs: calls.append(1))
    return calls


def test_an_architecture_that_cannot_recompute_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    model = make("llama")
    monkeypatch.setattr(type(model), "supports_gradient_checkpointing", False)
    with pytest.raises(KdscaleError, match="'llama' cannot recompute activations"):
        checkpoint_activations(model)
