"""Students small enough for a unit test."""

import torch

from kdscale.config.teacher import ModelConfig
from kdscale.models.head import ModelWithHead
from kdscale.models.load import build_model, make_config
from tests.unit.cache.planted import ROW_LENGTH, VOCAB

SPECIAL = {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0}
OPTIONS = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
}


def make_student(seed: int) -> ModelWithHead:
    """Return a llama over the planted cache's vocabulary, far from uniform to tell rows apart."""
    config = ModelConfig(architecture="llama", options=OPTIONS)
    model = build_model(make_config(config, VOCAB, SPECIAL, ROW_LENGTH), seed)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return ModelWithHead(model, VOCAB)
