"""Encoders and decoders for every task: built, saved, loaded, refused."""

from pathlib import Path
from typing import Any

import pytest
import torch

from kdscale.config.data import ChunkPooling, ChunksConfig
from kdscale.config.teacher import ModelConfig
from kdscale.errors import KdscaleError
from kdscale.models.chunked_classifier import pool_chunks
from kdscale.models.forward import compute_logits
from kdscale.models.head import ModelWithHead
from kdscale.models.load import build_model, load_config_of, load_model, make_config
from kdscale.models.tasks import TaskSpec, set_task, task_of

V, T = 60, 12
SPECIAL = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
CLASSES = ("a", "b", "c")
CLASSIFIER = TaskSpec("sequence-classification", CLASSES)
SIZES = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
}
OPTIONS: dict[str, dict[str, Any]] = {
    "bert": SIZES,
    "roberta": SIZES | {"max_position_embeddings": 64},
    "deberta-v2": SIZES,
    "modernbert": SIZES,
    "distilbert": {"dim": 32, "hidden_dim": 48, "n_layers": 2, "n_heads": 4},
    "llama": SIZES | {"num_key_value_heads": 4},
}


def shape_of(architecture: str, task_spec: TaskSpec) -> Any:
    model = ModelConfig(architecture=architecture, options=OPTIONS[architecture])
    return make_config(model, V, SPECIAL, T, task_spec)


def rows(lengths: tuple[int, ...], length: int = T) -> tuple[torch.Tensor, torch.Tensor]:
    ids = torch.randint(3, V, (len(lengths), length), generator=torch.Generator().manual_seed(0))
    segments = (torch.arange(length)[None] < torch.tensor(lengths)[:, None]).long()
    return ids * segments, segments


@pytest.mark.parametrize("architecture", OPTIONS)
def test_a_classifier_sees_no_padding(architecture: str, tmp_path: Path) -> None:
    model = build_model(shape_of(architecture, CLASSIFIER), 0).eval()
    ids, segments = rows((12, 5))
    logits = compute_logits(model, ids, segments, 3)
    assert logits.shape == (2, T, 3)
    assert (logits == logits[:, :1]).all()
    alone = compute_logits(model, ids[1:, :5], segments[1:, :5], 3)
    assert torch.allclose(logits[1, 0], alone[0, 0], atol=1e-5)
    model.save_pretrained(tmp_path)
    shape = load_config_of(tmp_path)
    assert task_of(shape) == "sequence-classification"
    assert list(shape.id2label.values()) == list(CLASSES)
    assert torch.allclose(compute_logits(load_model(tmp_path).eval(), ids, segments, 3), logits)


@pytest.mark.parametrize("architecture", ["bert", "roberta", "deberta-v2", "distilbert"])
def test_a_masked_model_sees_both_sides(architecture: str, tmp_path: Path) -> None:
    model = build_model(shape_of(architecture, TaskSpec("masked-lm")), 0).eval()
    ids, segments = rows((10,))
    logits = compute_logits(model, ids, segments, V)
    assert logits.shape == (1, T, V)
    changed = ids.clone()
    changed[0, 9] = 4 if ids[0, 9] != 4 else 5
    assert not torch.allclose(compute_logits(model, changed, segments, V)[0, 0], logits[0, 0])
    padding = ids.clone()
    padding[0, 10:] = 7
    seen = compute_logits(model, padding, segments, V)[0, :10]
    assert torch.allclose(seen, logits[0, :10], atol=1e-5)
    trained = ModelWithHead(model, V).eval()
    trained(ModelWithHead.detect_head, torch.device("cpu"))
    found = trained.head.logits(trained.hidden(ids, segments)[0])
    assert torch.allclose(found, logits[0], atol=1e-4)


def test_a_classifier_trains_through_the_fused_loss() -> None:
    from kdscale.losses.fused import head_and_loss

    model = ModelWithHead(build_model(shape_of("bert", CLASSIFIER), 0), 3).eval()
    model(ModelWithHead.detect_head, torch.device("cpu"))
    ids, segments = rows((12, 5))
    labels = torch.tensor([2, 0])
    hidden = model.hidden(ids, segments)[:, 0]
    head_and_loss(hidden, model.head, labels).objective.backward()
    got = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    mask = (segments != 0).long()
    logits = model.model(input_ids=ids, attention_mask=mask).logits
    torch.nn.functional.cross_entropy(logits, labels, reduction="sum").backward()
    assert got
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            assert torch.allclose(got[name], parameter.grad, atol=1e-5), name


def test_a_model_without_the_head_is_trained_further_or_refused(tmp_path: Path) -> None:
    from transformers import AutoModel

    bare = AutoModel.from_config(shape_of("bert", TaskSpec("masked-lm")))
    bare.save_pretrained(tmp_path)
    shape = load_config_of(tmp_path)
    assert task_of(shape) == "causal-lm"
    set_task(shape, CLASSIFIER, T)
    model = load_model(tmp_path, config=shape)
    body, loaded = bare.state_dict(), model.base_model.state_dict()
    assert all(torch.equal(body[name], loaded[name]) for name in body)
    assert model.config.num_labels == 3
    shape.save_pretrained(tmp_path)
    with pytest.raises(KdscaleError, match="is no sequence classifier: it has no weights for"):
        load_model(tmp_path)


def test_what_an_architecture_cannot_do_is_refused() -> None:
    with pytest.raises(KdscaleError, match="no masked language model of the architecture 'llama'"):
        shape_of("llama", TaskSpec("masked-lm"))
    small = ModelConfig(architecture="bert", options=SIZES | {"max_position_embeddings": 8})
    with pytest.raises(KdscaleError, match="of 8 positions, cannot take 12 tokens"):
        make_config(small, V, SPECIAL, T, CLASSIFIER)
    chunked = TaskSpec("sequence-classification", CLASSES, ChunksConfig(length=8))
    assert make_config(small, V, SPECIAL, 64, chunked).kdscale_chunks["length"] == 8


@pytest.mark.parametrize("pooling", ["mean", "max", "attention"])
def test_chunks_are_combined_as_they_say(pooling: ChunkPooling) -> None:
    random = torch.Generator().manual_seed(1)
    present = torch.tensor([[True, True, False], [True, False, False], [True, True, True]])
    logits = torch.randn(6, 2, generator=random, requires_grad=True)
    scores = torch.randn(6, 1, generator=random, requires_grad=True)
    found = pool_chunks(logits, present, pooling, scores if pooling == "attention" else None)
    found.square().sum().backward()
    gradients = logits.grad, scores.grad
    logits.grad = scores.grad = None
    expected, first = [], 0
    for count in present.sum(dim=1).tolist():
        own, weights = logits[first : first + count], scores[first : first + count, 0].exp()
        if pooling == "mean":
            expected.append(sum(own) / count)
        elif pooling == "max":
            expected.append(torch.stack([own[:, c].max() for c in range(2)]))
        else:
            expected.append(sum(w * o for w, o in zip(weights, own, strict=True)) / weights.sum())
        first += count
    reference = torch.stack(expected)
    assert torch.allclose(found, reference, atol=1e-6)
    reference.square().sum().backward()
    assert torch.allclose(gradients[0], logits.grad, atol=1e-5)
    if pooling == "attention":
        assert torch.allclose(gradients[1], scores.grad, atol=1e-5)


@pytest.mark.parametrize("architecture", ["bert", "llama"])
@pytest.mark.parametrize("pooling", ["mean", "max", "attention"])
def test_a_chunked_classifier_scores_each_chunk_alone(
    architecture: str, pooling: ChunkPooling, tmp_path: Path
) -> None:
    task_spec = TaskSpec(
        "sequence-classification", CLASSES, ChunksConfig(length=8, pooling=pooling)
    )
    model: Any = build_model(shape_of(architecture, task_spec), 0).eval()
    if pooling == "attention":
        torch.nn.init.normal_(model.chunk_score.weight)
    ids, segments = rows((20, 6), 24)
    logits = compute_logits(model, ids, segments, 3)[:, 0]
    plain = build_model(shape_of(architecture, CLASSIFIER), 0).eval()
    plain.load_state_dict(model.state_dict(), strict=pooling != "attention")
    alone = [
        compute_logits(plain, ids[:1, s : s + 8], segments[:1, s : s + 8], 3)[0, 0]
        for s in (0, 8, 16)
    ]
    assert torch.allclose(
        logits[1], compute_logits(plain, ids[1:, :8], segments[1:, :8], 3)[0, 0], atol=1e-5
    )
    if pooling == "mean":
        assert torch.allclose(logits[0], sum(alone) / 3, atol=1e-5)
    elif pooling == "max":
        assert torch.allclose(logits[0], torch.stack(alone).amax(dim=0), atol=1e-5)
    model.save_pretrained(tmp_path)
    again = load_model(tmp_path).eval()
    assert torch.allclose(compute_logits(again, ids, segments, 3)[:, 0], logits, atol=1e-5)
    # transformers alone reads the folder too, for texts of one chunk.
    from transformers import AutoModelForSequenceClassification

    outside = AutoModelForSequenceClassification.from_pretrained(tmp_path).eval()
    mask = segments[1:, :8]
    assert torch.allclose(
        outside(input_ids=ids[1:, :8], attention_mask=mask).logits[0], logits[1], atol=1e-5
    )
