"""Counts from a config alone, against the built model and torch's own counter of FLOPs."""

from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from kdscale.config.lora import LoraConfig
from kdscale.config.teacher import ModelConfig
from kdscale.models.load import build_model, count_parameters, load_config_of, make_config
from kdscale.models.lora import add_adapters
from kdscale.plan.inputs import Shape, shape_of
from tests.architectures import tiny_config

MODELS = {
    "llama": {
        "hidden_size": 64,
        "intermediate_size": 160,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
    },
    "gpt2": {"n_embd": 64, "n_layer": 2, "n_head": 4},
    "qwen3": {
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "head_dim": 32,
        "tie_word_embeddings": True,
    },
    "qwen3_moe": {
        "hidden_size": 32,
        "intermediate_size": 64,
        "moe_intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "num_experts": 8,
        "num_experts_per_tok": 2,
        "mlp_only_layers": [],
        "decoder_sparse_step": 1,
    },
}
LENGTH = 48


def config_of(architecture: str, **more: Any) -> Any:
    model = ModelConfig(architecture=architecture, options=MODELS[architecture] | more)
    return make_config(model, 500, {}, LENGTH)


def counted(config: Any) -> Any:
    """Build a model whose attention is matrix products, which the counter knows."""
    model = build_model(config, seed=0)
    model.set_attn_implementation("eager")
    return model


@pytest.mark.parametrize("architecture", MODELS)
def test_parameters_are_those_of_the_built_model(architecture: str) -> None:
    config = config_of(architecture)
    assert shape_of(config).parameters == count_parameters(build_model(config, seed=0))


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "qwen3"])
def test_flops_of_a_forward_are_those_that_torch_counts(architecture: str) -> None:
    config = config_of(architecture)
    model = counted(config).eval()
    ids = torch.randint(500, (2, LENGTH))
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(input_ids=ids, use_cache=False)
    expected = counter.get_total_flops() / ids.numel()
    assert shape_of(config).forward_flops(LENGTH) == pytest.approx(expected, rel=0.01)


def test_flops_of_a_training_step_are_three_forwards() -> None:
    config = config_of("llama")
    model = counted(config)
    ids = torch.randint(500, (2, LENGTH))
    with FlopCounterMode(display=False) as counter:
        model(input_ids=ids, use_cache=False).logits.sum().backward()
    expected = counter.get_total_flops() / ids.numel()
    assert shape_of(config).training_flops(LENGTH) == pytest.approx(expected, rel=0.01)


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "qwen3"])
def test_flops_beside_adapters_are_those_that_torch_counts(architecture: str) -> None:
    config, lora = config_of(architecture, num_hidden_layers=6), LoraConfig(r=8)
    model = counted(config)
    add_adapters(model, lora, seed=0)
    # Backward goes down to the first layer's adapters, whose inputs need no gradient.
    ids = torch.randint(500, (2, LENGTH))
    with FlopCounterMode(display=False) as counter:
        model(input_ids=ids, use_cache=False).logits.sum().backward()
    expected = counter.get_total_flops() / ids.numel()
    shape = shape_of(config, lora)
    assert shape.training_flops(LENGTH) == pytest.approx(expected, rel=0.04)
    assert shape.training_flops(LENGTH) < 0.9 * shape_of(config).training_flops(LENGTH)


def test_checkpointing_adds_a_forward_of_the_layers() -> None:
    shape = shape_of(config_of("llama"))
    again = shape.training_flops(LENGTH, checkpointing=True) - shape.training_flops(LENGTH)
    assert again == shape.forward_flops(LENGTH) - 2 * shape.head


def test_a_mixture_counts_the_experts_that_a_token_meets() -> None:
    shape = shape_of(config_of("qwen3_moe"))
    attention = 4 * 32 * 32  # q, k, v and o
    router = 32 * 8
    experts = 2 * 3 * 32 * 48
    assert shape.matrices == 2 * (attention + router + experts)
    assert shape.neurons == 2 * 48


@pytest.mark.parametrize("kind", ["mixtral", "qwen3_moe", "gpt_oss", "deepseek_v3", "olmoe"])
def test_mixtures_by_other_names_count_them_too(kind: str) -> None:
    """2 of 4 experts: half of their elements, all of the others."""
    config = tiny_config(kind)
    with torch.device("meta"):
        model = build_model(config, seed=0)
    layers = {n: p for n, p in model.named_parameters() if ".layers." in n and p.dim() > 1}
    experts = sum(p.numel() for n, p in layers.items() if ".experts." in n)
    assert experts > 0
    everything = sum(p.numel() for p in layers.values())
    assert shape_of(config).matrices == everything - experts // 2


def test_a_mixture_of_235b_has_the_parameters_that_its_authors_give() -> None:
    shape = shape_of(load_config_of("jobs/configs/shapes/qwen3-235b-a22b"))
    assert shape.parameters == 235_093_634_560
    # With the embedding, which only looks up.
    assert shape.active + shape.head == pytest.approx(22.2e9, rel=2e-3)


def test_windows_bound_what_attention_sees() -> None:
    full = shape_of(config_of("qwen3"))
    assert full.attention_flops(100) == 4 * 4 * 32 * 2 * 100
    windowed = Shape(**{**vars(full), "windows": (10, None)})
    assert windowed.attention_flops(100) == 4 * 4 * 32 * 110


def test_llama_70b_has_the_parameters_that_its_authors_give() -> None:
    shape = shape_of(load_config_of("jobs/configs/shapes/llama-3.1-70b"))
    assert shape.parameters == 70_553_706_496
    # 2 N but for the embedding that looks up, and norms.
    assert shape.matrices + shape.head == pytest.approx(70.55e9 - 128256 * 8192, rel=1e-3)
