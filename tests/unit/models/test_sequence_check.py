"""Every document of a row gives the logits that it gives alone, or the model is refused.

The reference is transformers on one document at a time; all positions are compared here, where
the check of a run looks at some of each document.
"""

from functools import partial

import pytest
import torch
from transformers import AutoModelForCausalLM

from kdscale.errors import KdscaleError
from kdscale.models.chunked_classifier import chunked_class, set_chunks
from kdscale.models.forward import RowTensors, document_positions, target_logits
from kdscale.models.head import ModelWithHead
from kdscale.models.sequence_check import SequenceSpec, check_sequences
from tests.alone import LENGTH, PACKED, SINGLE, logits_at, outcome, worst_difference
from tests.architectures import CAUSAL, MASKED, NOT_BUILT, VOCAB, tiny_config, tiny_model

# Those that people distil, with a window shorter than a document wherever there is one.
COMMON = (
    *("llama", "mistral", "gemma", "gemma2", "gemma3_text", "gemma4_text", "qwen2", "qwen3"),
    *("qwen3_moe", "mixtral", "gpt_oss", "phi3", "olmo2", "olmo3", "cohere2", "starcoder2"),
    *("gpt2", "opt", "gpt_neox", "gpt_bigcode", "falcon", "exaone4", "llama4_text", "smollm3"),
    *("deepseek_v3", "granite", "vaultgemma", "gpt_neo", "mpt", "xglm", "biogpt"),
)
# Recurrent layers, positions that are counted from the row's start, or no masks at all.
REFUSED_PACKED = ("mamba", "qwen3_next", "bloom", "bart", "lfm2", "jamba", "roberta")


@pytest.mark.parametrize("kind", COMMON)
def test_a_document_has_the_logits_that_it_has_alone(kind: str) -> None:
    model = tiny_model(kind)
    assert worst_difference(model) < 1e-4
    check_sequences(model, logits_at(model), PACKED)
    # As training computes them, by hidden states and head, in training mode.
    trained = ModelWithHead(model, VOCAB)
    trained.train()
    trained.detect_head(torch.device("cpu"))
    trained.check_sequences(PACKED)
    assert trained.training
    assert all(module.training for module in trained.modules())


@pytest.mark.parametrize("kind", REFUSED_PACKED)
def test_an_architecture_that_mixes_packed_documents_is_refused(kind: str) -> None:
    model = tiny_model(kind)
    with pytest.raises(KdscaleError, match="packed documents") as refused:
        check_sequences(model, logits_at(model), PACKED)
    assert refused.value.fix == "Set data.pack to false."
    check_sequences(model, logits_at(model), SINGLE)
    assert worst_difference(model, packs=False) < 1e-4


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "masked"), [*((k, False) for k in CAUSAL), *((k, True) for k in MASKED)]
)
def test_every_text_architecture_is_equal_or_refused(kind: str, masked: bool) -> None:
    found = outcome(kind, masked)
    allowed = ("equal", "refused", *(("not built",) if kind in NOT_BUILT else ()))
    assert found.startswith(allowed), found


@pytest.mark.parametrize("kind", ["bert", "roberta", "modernbert", "distilbert", "electra"])
def test_padding_does_not_change_a_masked_models_document(kind: str) -> None:
    model = tiny_model(kind, masked=True)
    check_sequences(model, logits_at(model), SINGLE)
    assert worst_difference(model, packs=False) < 1e-4


@pytest.mark.parametrize("kind", ["fnet", "mobilebert", "convbert"])
def test_a_masked_model_that_reads_padding_is_refused(kind: str) -> None:
    model = tiny_model(kind, masked=True)
    with pytest.raises(KdscaleError, match="other logits in a sequence of 100 tokens than alone"):
        check_sequences(model, logits_at(model), SINGLE)


def test_a_model_that_looks_ahead_is_refused() -> None:
    model = AutoModelForCausalLM.from_config(tiny_config("bert"), dtype=torch.float32).eval()
    with pytest.raises(KdscaleError, match="predicts a token from tokens behind it"):
        check_sequences(model, logits_at(model), SINGLE)


def test_noise_in_the_forward_is_refused() -> None:
    """Dropout that is on in one module is enough, as in a capture that forgot to switch it off."""
    model = tiny_model("gpt2")
    check_sequences(model, logits_at(model), PACKED)
    model.transformer.h[1].mlp.dropout.train()
    with pytest.raises(KdscaleError, match="other logits when the same sequences are run again"):
        check_sequences(model, logits_at(model), PACKED)


@pytest.mark.parametrize("lost", ["window", "positions", "isolation"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_what_is_lost_in_packed_rows_is_seen(lost: str, dtype: torch.dtype) -> None:
    """In both precisions; rounding alone is not taken for it."""
    model = tiny_model("mistral").to(dtype)
    check_sequences(model, logits_at(model), PACKED)

    def broken(batch: RowTensors) -> torch.Tensor:
        positions = document_positions(batch.segments)
        index = torch.arange(LENGTH)
        allowed = index[:, None] >= index
        if lost != "isolation":
            allowed = allowed & (batch.segments[:, :, None] == batch.segments[:, None])
        if lost != "window":
            allowed = allowed & (index[:, None] - index < model.config.sliding_window)
        mask = allowed.expand(len(batch.ids), LENGTH, LENGTH)[:, None]
        given = None if lost == "positions" else positions
        packed = (positions[:, 1:] == 0).any()
        inputs = {"attention_mask": mask, "position_ids": given} if packed else {}
        return model(input_ids=batch.ids, **inputs).logits[batch.mask][:, :VOCAB]

    if lost == "positions":  # which rotary embeddings take no notice of
        model = tiny_model("gpt2").to(dtype)
        model.config.sliding_window = LENGTH
    with pytest.raises(KdscaleError, match="packed documents see each other"):
        check_sequences(model, broken, PACKED)


def test_scaled_positions_beyond_their_length_are_refused() -> None:
    """Phi-3's long factors: a short document in a long row takes those of the row."""
    scaling = {
        "rope_type": "longrope",
        "rope_theta": 1e4,
        "short_factor": [1.0] * 4,
        "long_factor": [8.0] * 4,
        "original_max_position_embeddings": 64,
        "factor": 8.0,
    }
    options = {"rope_parameters": scaling, "original_max_position_embeddings": 64}
    model = tiny_model("phi3", **options)
    check_sequences(
        model, logits_at(model), SequenceSpec(VOCAB, VOCAB, 64, packs=True, micro_batch_size=3)
    )
    with pytest.raises(KdscaleError, match="in a sequence of 100 tokens than alone"):
        check_sequences(model, logits_at(model), PACKED)


@pytest.mark.parametrize("pooling", ["mean", "max", "attention"])
def test_a_classifier_of_chunks_passes(pooling: str) -> None:
    config = tiny_config("bert", num_labels=3)
    config.architectures = ["BertForSequenceClassification"]
    set_chunks(config, 32, pooling)
    from transformers import BertForSequenceClassification

    model = chunked_class(BertForSequenceClassification)._from_config(config).eval()
    check_sequences(
        model, partial(target_logits, model, vocab_size=3), SequenceSpec(VOCAB, 3, 96, False, 2)
    )


@pytest.mark.parametrize("kind", ["bert", "gpt2", "llama"])
def test_a_classifier_passes(kind: str) -> None:
    from transformers import AutoModelForSequenceClassification as Auto

    config = tiny_config(kind, num_labels=3, pad_token_id=0)
    config.architectures = [Auto._model_mapping[type(config)].__name__]
    model = Auto.from_config(config, dtype=torch.float32).eval()
    check_sequences(
        model, partial(target_logits, model, vocab_size=3), SequenceSpec(VOCAB, 3, 64, False, 2)
    )


@pytest.mark.parametrize("length", [4, 7, 16, 33])
def test_short_rows_are_tried_too(length: int) -> None:
    model = tiny_model("llama")
    check_sequences(model, logits_at(model), SequenceSpec(VOCAB, VOCAB, length, packs=True))
