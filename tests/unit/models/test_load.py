"""Building and forwarding a small model, and models that are refused."""

from pathlib import Path

import pytest
import torch

from kdscale.config.teacher import ModelConfig
from kdscale.errors import KdscaleError
from kdscale.models.forward import attention_inputs, compute_logits
from kdscale.models.load import build_model, check_vocabulary, load_model, make_config

SPECIAL = {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0}
LLAMA = ModelConfig(
    architecture="llama",
    options={
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
    },
)
VOCAB = 300


def make(config: ModelConfig, seed: int = 0) -> torch.nn.Module:
    return build_model(make_config(config, VOCAB, SPECIAL, 64), seed).eval()


def test_positions_start_again_with_every_segment() -> None:
    model = make(LLAMA)
    segments = torch.tensor([[1, 1, 1, 2, 2, 0]])
    inputs = attention_inputs(model, segments)
    # Padding goes on from the last document, which does not see it.
    assert inputs["position_ids"].tolist() == [[0, 1, 2, 0, 1, 2]]
    assert inputs["attention_mask"][0, 0].int().tolist() == [
        [1, 0, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 0],
        [1, 1, 1, 0, 0, 0],
        [0, 0, 0, 1, 0, 0],
        [0, 0, 0, 1, 1, 0],
        [0, 0, 0, 1, 1, 1],
    ]
    # One document and padding need no mask.
    assert attention_inputs(model, torch.tensor([[1, 1, 1, 0], [1, 1, 1, 1]])) == {}


def test_padding_ids_are_cut_off() -> None:
    padded = LLAMA.model_copy(update={"pad_vocab_to_multiple_of": 128})
    config = make_config(padded, VOCAB, SPECIAL, 64)
    assert config.vocab_size == 384
    model = build_model(config, 0)
    ids = torch.zeros(1, 4, dtype=torch.int64)
    assert compute_logits(model, ids, torch.ones_like(ids), VOCAB).shape == (1, 4, VOCAB)


def test_the_same_seed_gives_the_same_weights() -> None:
    one, same, other = (make(LLAMA, seed).state_dict() for seed in (0, 0, 1))
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert not torch.equal(one["lm_head.weight"], other["lm_head.weight"])


def test_bad_models_are_refused_with_the_reason(tmp_path: Path) -> None:
    with pytest.raises(KdscaleError, match="no architecture 'lama'"):
        make_config(ModelConfig(architecture="lama"), VOCAB, SPECIAL, 64)
    wrong = ModelConfig(architecture="llama", options={"hidden_sise": 32})
    with pytest.raises(KdscaleError, match="no option 'hidden_sise'"):
        make_config(wrong, VOCAB, SPECIAL, 64)
    with pytest.raises(KdscaleError, match="No model can be loaded"):
        load_model(tmp_path)
    with pytest.raises(KdscaleError, match=r"has 300 embeddings, but .* has 301 ids"):
        check_vocabulary(make(LLAMA).config, 301, "teacher")
