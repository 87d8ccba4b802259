"""Dropout, activation checkpointing and evaluation mode of models of several architectures."""

from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

from kdscale.errors import KdscaleError
from kdscale.models.load import load_model
from kdscale.models.modes import checkpoint_activations, evaluation_mode, set_dropout
from tests.architectures import tiny_model

# Names of the dropouts in the config of each; classifiers and GPT-2's summary are left alone.
NAMES = {
    "llama": ["attention_dropout"],
    "qwen3": ["attention_dropout"],
    "gpt2": ["resid_pdrop", "embd_pdrop", "attn_pdrop"],
    "gpt_neox": ["attention_dropout", "hidden_dropout"],
    "opt": ["dropout", "attention_dropout"],
    "falcon": ["attention_dropout", "hidden_dropout"],
}


def logits(model: PreTrainedModel, seed: int = 0) -> torch.Tensor:
    torch.manual_seed(seed)
    out: torch.Tensor = model(torch.arange(12)[None], use_cache=False).logits
    return out


@pytest.mark.parametrize("architecture", NAMES)
def test_dropout_is_set_in_modules_and_config(architecture: str) -> None:
    model = tiny_model(architecture)
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


@pytest.mark.parametrize(
    ("kind", "name", "rate"), [("opt", "layerdrop", 0.0), ("gpt2", "summary_first_dropout", 0.1)]
)
def test_what_is_no_dropout_of_units_stays(kind: str, name: str, rate: float) -> None:
    model = tiny_model(kind)
    assert getattr(model.config, name) == rate
    set_dropout(model, 0.3)
    assert getattr(model.config, name) == rate


def test_the_rate_is_what_is_dropped() -> None:
    model = tiny_model("gpt2")
    set_dropout(model, 0.4)
    torch.manual_seed(0)
    dropped = model.transformer.drop.train()(torch.ones(100_000))
    assert (dropped == 0).float().mean().item() == pytest.approx(0.4, abs=0.01)


def test_a_model_with_other_dropout_is_saved_and_loaded(tmp_path: Any) -> None:
    model = tiny_model("gpt2")
    set_dropout(model, 0.3)
    model.save_pretrained(tmp_path)
    loaded = load_model(tmp_path)
    assert loaded.transformer.drop.p == 0.3
    assert torch.equal(logits(loaded.eval()), logits(model.eval()))


def test_an_architecture_without_dropout_is_refused() -> None:
    with pytest.raises(KdscaleError, match="'mamba' has no dropout to set"):
        set_dropout(tiny_model("mamba"), 0.1)


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_activation_checkpointing_keeps_logits_and_gradients(architecture: str) -> None:
    """With dropout: the second forward has to drop the same units as the first."""
    results = []
    for checkpointing in (False, True):
        model = tiny_model(architecture)
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
    """Return a list that grows with every forward of the first layer's norm."""
    calls: list[int] = []
    norms = [m for name, m in model.named_modules() if name.endswith(("ln_1", "input_layernorm"))]
    norms[0].register_forward_pre_hook(lambda module, inputs: calls.append(1))
    return calls


def test_an_architecture_that_cannot_recompute_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model("llama")
    monkeypatch.setattr(type(model), "supports_gradient_checkpointing", False)
    with pytest.raises(KdscaleError, match="'llama' cannot recompute activations"):
        checkpoint_activations(model)


def test_every_module_gets_its_own_mode_back() -> None:
    model = torch.nn.Sequential(torch.nn.Dropout(), torch.nn.Sequential(torch.nn.Dropout()))
    model.train()
    model[1].eval()
    before = [module.training for module in model.modules()]
    with evaluation_mode(model):
        assert not any(module.training for module in model.modules())
    assert [module.training for module in model.modules()] == before
