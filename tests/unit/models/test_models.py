"""Building and forwarding models: real small ones of several architectures."""

from pathlib import Path

import numpy as np
import pytest
import torch

from kdscale.config.teacher import ModelConfig
from kdscale.errors import KdscaleError
from kdscale.models.forward import (
    attention_inputs,
    compute_logits,
)
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
GPT2 = ModelConfig(architecture="gpt2", options={"n_embd": 32, "n_layer": 3, "n_head": 4})
QWEN3 = ModelConfig(
    architecture="qwen3",
    options={**LLAMA.options, "head_dim": 8, "tie_word_embeddings": True},
)
VOCAB = 300


def make(config: ModelConfig, seed: int = 0) -> torch.nn.Module:
    return build_model(make_config(config, VOCAB, SPECIAL, 64), seed).eval()


@pytest.mark.parametrize("config", [LLAMA, GPT2, QWEN3], ids=lambda c: c.architecture)
def test_packed_documents_have_the_logits_they_have_alone(config: ModelConfig) -> None:
    model = make(config)
    generator = torch.Generator().manual_seed(1)
    a = torch.randint(VOCAB, (1, 5), generator=generator)
    b = torch.randint(VOCAB, (1, 7), generator=generator)
    packed = torch.cat([a, b, torch.zeros(1, 4, dtype=torch.int64)], dim=1)
    segments = torch.tensor([[1] * 5 + [2] * 7 + [0] * 4])
    with torch.no_grad():
        together = compute_logits(model, packed, segments, VOCAB)
        for start, document in ((0, a), (5, b)):
            alone = model(input_ids=document).logits
            torch.testing.assert_close(
                together[:, start : start + document.shape[1]], alone, atol=1e-4, rtol=1e-4
            )


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
    with pytest.raises(KdscaleError, match="has 300 embeddings, but its tokenizer has 301 ids"):
        check_vocabulary(make(LLAMA).config, 301, "teacher")


def test_logits_do_not_see_the_future() -> None:
    model = make(LLAMA)
    ids = torch.from_numpy(np.random.default_rng(0).integers(VOCAB, size=(1, 16)))
    changed = ids.clone()
    changed[0, 9:] = 1
    segments = torch.ones_like(ids)
    with torch.no_grad():
        before = compute_logits(model, ids, segments, VOCAB)
        after = compute_logits(model, changed, segments, VOCAB)
    torch.testing.assert_close(before[:, :9], after[:, :9])
    assert not torch.allclose(before[:, 9:], after[:, 9:])
