"""Llamas small enough for a unit test."""

from typing import Any

import torch
from transformers import PreTrainedModel

from kdscale.config.teacher import ModelConfig
from kdscale.models.load import build_model, make_config

SPECIAL = {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0}


def llama_config(
    vocab_size: int, length: int, *, width: int = 16, heads: int = 2, layers: int = 1
) -> Any:
    """Return a transformers config; its MLPs are 1.5 times as wide, keys are not shared."""
    options = {
        "hidden_size": width,
        "intermediate_size": width * 3 // 2,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": heads,
    }
    model = ModelConfig(architecture="llama", options=options)
    return make_config(model, vocab_size, SPECIAL, length)


def strong_llama(config: Any, seed: int) -> PreTrainedModel:
    """Return a model whose logits are far from uniform."""
    model = build_model(config, seed)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return model
