"""The loss of a batch, against whole logits and autograd in float64, over architectures."""

from dataclasses import replace
from operator import itemgetter
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

import kdscale
from kdscale.config.cache import CodecConfig, FullCodec, TopkCodec, VaroptCodec
from kdscale.config.teacher import ModelConfig
from kdscale.errors import KdscaleError
from kdscale.models.forward import compute_logits
from kdscale.models.load import build_model, make_config
from tests.training import plant, student
from tests.unit.cache.planted import ROW_LENGTH, VOCAB

WEIGHT = 0.7
CODECS: dict[str, CodecConfig] = {
    "varopt": VaroptCodec(k=4, head=2),
    "topk": TopkCodec(k=4),
    "full": FullCodec(),
}
SMALL = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
}
STUDENTS: dict[str, dict[str, Any]] = {
    "llama": SMALL,
    "llama tied": {**SMALL, "tie_word_embeddings": True},
    "qwen3": {**SMALL, "head_dim": 8},
    "gpt2": {"n_embd": 16, "n_layer": 2, "n_head": 2},
    "phi": SMALL,  # its head has a bias
    "gemma2": {**SMALL, "head_dim": 8, "final_logit_softcapping": 2.0, "sliding_window": 4},
    "gemma3_text": {**SMALL, "head_dim": 8, "sliding_window": 4},
    "granite": {**SMALL, "logits_scaling": 4.0},
}


def make(name: str) -> PreTrainedModel:
    """Return a model with six embeddings of padding, far from uniform."""
    special = {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0}
    shape = ModelConfig(
        architecture=name.split()[0], options=STUDENTS[name], pad_vocab_to_multiple_of=8
    )
    torch.manual_seed(1)
    found = build_model(make_config(shape, VOCAB, special, ROW_LENGTH), 0)
    for parameter in found.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return found.eval()


@pytest.fixture(scope="module")
def batches(tmp_path_factory: pytest.TempPathFactory) -> dict[str, kdscale.Batch]:
    found = {}
    for name, codec in CODECS.items():
        place = plant(tmp_path_factory.mktemp(name), codec).store.url
        found[name] = next(iter(kdscale.open_cache(place).loader(5, seed=2)))
    return found


def hidden_of(model: Any, batch: kdscale.Batch) -> torch.Tensor:
    hidden: torch.Tensor = model.base_model(**kdscale.model_inputs(model, batch)).last_hidden_state
    return hidden


def dense_loss(
    model: Any, batch: kdscale.Batch, weights: torch.Tensor | None = None
) -> torch.Tensor:
    """Return the mean loss from transformers' own logits, document by document, in float64."""
    rows = []
    for ids, segments in zip(batch.input_ids, batch.segment_ids, strict=True):
        # Packed documents are computed alone, as transformers does it.
        parts = [ids[segments == number] for number in segments.unique_consecutive()]
        found = [model(input_ids=part[None], use_cache=False).logits[0] for part in parts]
        rows.append(torch.cat(found))
    logits = torch.stack(rows)[batch.loss_mask][:, :VOCAB].double()
    log_q = logits.log_softmax(-1)
    labels = batch.labels[batch.loss_mask]
    surprise = -log_q.gather(-1, labels[:, None])[:, 0]
    targets = batch.targets
    if isinstance(targets, kdscale.DenseTargets):
        soft = -(targets.log_probs.double().exp() * log_q).sum(-1)
    else:
        soft = -(targets.probs.double() * log_q.gather(-1, targets.ids)).sum(-1)
        if targets.ghost is not None:
            q = log_q.exp()
            rest = torch.ones_like(q).scatter(-1, targets.ids, 0.0).mul(q).sum(-1)
            soft = soft - targets.ghost.double() * rest.log()
    if weights is not None:
        surprise = surprise * weights[batch.loss_mask]
    return (WEIGHT * soft + (1 - WEIGHT) * surprise).sum() / batch.num_targets


def gradients(model: Any, loss: torch.Tensor) -> dict[str, torch.Tensor]:
    model.zero_grad()
    loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("name", STUDENTS)
def test_loss_and_gradients_are_those_of_whole_logits(
    batches: dict[str, kdscale.Batch], name: str, codec: str
) -> None:
    model, batch = make(name), batches[codec]
    assert (batch.position_ids[:, 1:] == 0).any(), "no packed documents in the batch"
    reference = make(name).double()
    expected = dense_loss(reference, batch)
    # The model brings its scale and cap; a linear map alone has none.
    found = kdscale.distillation_loss(hidden_of(model, batch), model, batch, kd_weight=WEIGHT)
    assert found.item() == pytest.approx(expected.item(), rel=1e-5)
    mine, theirs = gradients(model, found), gradients(reference, expected)
    assert mine.keys() == theirs.keys()
    for key, gradient in theirs.items():
        limit = 1e-4 * float(gradient.abs().max()) + 1e-7
        torch.testing.assert_close(mine[key].double(), gradient, rtol=1e-3, atol=limit, msg=key)


@pytest.mark.parametrize("name", ["llama", "phi", "gemma2", "granite"])
def test_a_head_may_be_a_module_with_a_config_or_kdscales_own(
    batches: dict[str, kdscale.Batch], name: str
) -> None:
    model, batch = make(name), batches["varopt"]
    hidden = hidden_of(model, batch)
    loss = kdscale.distillation_loss(hidden, model, batch, kd_weight=WEIGHT)
    output = model.get_output_embeddings()
    config = model.config
    found = kdscale.distillation_loss(hidden, output, batch, kd_weight=WEIGHT, config=config)
    assert found.item() == pytest.approx(loss.item())
    scale = 1 / getattr(config, "logits_scaling", 1)
    cap = getattr(config, "final_logit_softcapping", None)
    own = kdscale.Head(output.weight, output.bias, VOCAB, scale, cap)
    flat = hidden[batch.loss_mask]
    found = kdscale.distillation_loss(flat, own, batch, kd_weight=WEIGHT)
    assert found.item() == pytest.approx(loss.item())
    logits = compute_logits(model, batch.input_ids, batch.segment_ids, VOCAB)
    given = kdscale.distillation_loss(
        logits, kdscale.Head(None, None, VOCAB), batch, kd_weight=WEIGHT
    )
    assert given.item() == pytest.approx(loss.item(), rel=1e-5)


def test_parts_add_up_and_the_kl_is_a_kl(batches: dict[str, kdscale.Batch]) -> None:
    model, batch = make("llama"), batches["full"]
    parts = kdscale.loss_parts(hidden_of(model, batch), model.lm_head, batch, kd_weight=WEIGHT)
    total = WEIGHT * parts.distillation + (1 - WEIGHT) * parts.cross_entropy
    assert parts.objective.item() == pytest.approx(total.item(), rel=1e-5)
    logits = compute_logits(model, batch.input_ids, batch.segment_ids, VOCAB)[batch.loss_mask]
    kl = torch.nn.functional.kl_div(
        logits.log_softmax(-1), batch.targets.log_probs, reduction="sum", log_target=True
    )
    # The planted cache's entropies are made up: the KL is off by what they are off by.
    rows = batch.loss_mask.sum(1)
    entropy = (batch.entropy * rows).sum()
    own = torch.special.entr(batch.targets.log_probs.exp()).sum()
    assert parts.kl is not None
    assert parts.kl.item() == pytest.approx((kl + own - entropy).item(), rel=1e-4)


def test_micro_batches_add_up_to_the_loss_of_all(batches: dict[str, kdscale.Batch]) -> None:
    model, batch = make("llama"), batches["varopt"]
    whole = gradients(
        model, kdscale.distillation_loss(hidden_of(model, batch), model.lm_head, batch)
    )
    model.zero_grad()
    place = [slice(0, 2), slice(2, 5)]
    for part in place:
        some = take(batch, part)
        hidden = hidden_of(model, some)
        kdscale.distillation_loss(
            hidden, model.lm_head, some, num_targets=batch.num_targets
        ).backward()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, whole[name], rtol=1e-4, atol=1e-6)


def take(batch: kdscale.Batch, part: slice) -> kdscale.Batch:
    rows = batch.rows.each(itemgetter(part))
    count = int(rows.mask.sum())
    return replace(
        batch,
        rows=rows,
        payload=batch.payload[part],
        entropy=batch.entropy[part],
        num_targets=count,
        num_labels=count,
    )


def test_labels_may_be_weighted(batches: dict[str, kdscale.Batch]) -> None:
    model, batch = make("llama"), batches["varopt"]
    weights = torch.rand(batch.loss_mask.shape, generator=torch.Generator().manual_seed(0))
    expected = dense_loss(make("llama").double(), batch, weights.double())
    found = kdscale.distillation_loss(
        hidden_of(model, batch), model.lm_head, batch, kd_weight=WEIGHT, label_weights=weights
    )
    assert found.item() == pytest.approx(expected.item(), rel=1e-5)


def test_a_student_in_half_precision_has_a_loss_near_that_in_float32(
    batches: dict[str, kdscale.Batch],
) -> None:
    batch = batches["varopt"]
    expected = kdscale.distillation_loss(hidden_of(student(), batch), student().lm_head, batch)
    model = student().to(torch.bfloat16)
    found = kdscale.distillation_loss(hidden_of(model, batch), model.lm_head, batch)
    assert found.dtype == torch.float32
    assert found.item() == pytest.approx(expected.item(), rel=0.02)
    found.backward()
    assert model.lm_head.weight.grad.dtype == torch.bfloat16


def test_other_divergences_are_taken_where_they_are_defined(
    batches: dict[str, kdscale.Batch],
) -> None:
    model, batch = make("llama"), batches["full"]
    hidden = hidden_of(model, batch)
    loss = kdscale.distillation_loss(hidden, model.lm_head, batch, divergence="reverse_kl")
    logits = compute_logits(model, batch.input_ids, batch.segment_ids, VOCAB)[batch.loss_mask]
    kl = torch.nn.functional.kl_div(
        batch.targets.log_probs, logits.log_softmax(-1), reduction="sum", log_target=True
    )
    assert loss.item() == pytest.approx(kl.item() / batch.num_targets, rel=1e-4)
    skewed = {"kind": "jensen_shannon", "beta": 0.3}
    parts = kdscale.loss_parts(hidden, model.lm_head, batch, divergence=skewed)
    assert parts.kl is None
    sampled = batches["varopt"]
    with pytest.raises(KdscaleError, match="not defined on the targets of 'varopt'"):
        kdscale.distillation_loss(hidden, model.lm_head, sampled, divergence="reverse_kl")
    with pytest.raises(KdscaleError, match="sideways_kl"):
        kdscale.distillation_loss(hidden, model.lm_head, batch, divergence="sideways_kl")


def test_bad_input_is_refused(batches: dict[str, kdscale.Batch]) -> None:
    model, batch = make("llama"), batches["varopt"]
    hidden = hidden_of(model, batch)
    with pytest.raises(KdscaleError, match=r"kd_weight is 1\.5"):
        kdscale.distillation_loss(hidden, model.lm_head, batch, kd_weight=1.5)
    with pytest.raises(ValueError, match="are not of a batch"):
        kdscale.distillation_loss(hidden[:, 1:], model.lm_head, batch)
    few = torch.nn.Linear(16, VOCAB - 1)
    with pytest.raises(KdscaleError, match="49 outputs, the cache's tokenizer 50 ids"):
        kdscale.distillation_loss(hidden, few, batch)
    with pytest.raises(KdscaleError, match="no plain linear map"):
        kdscale.distillation_loss(hidden, torch.nn.Sequential(few), batch)
    sharded = torch.nn.Linear(16, VOCAB)
    sharded.weight = torch.nn.Parameter(torch.zeros(0))
    with pytest.raises(KdscaleError, match="sharded"):
        kdscale.distillation_loss(hidden, sharded, batch)


def test_a_cache_refuses_a_model_that_it_cannot_train(tmp_path: Path) -> None:
    cache = kdscale.open_cache(plant(tmp_path).store.url)
    cache.check(make("gemma2"))
    small = make("llama")
    small.resize_token_embeddings(VOCAB - 2)
    with pytest.raises(KdscaleError, match="48 embeddings"):
        cache.check(small)

    class Leaky(type(make("llama"))):  # type: ignore[misc]
        """Forgets where documents end."""

        def create_masks_for_generate(self, *_: Any, **__: Any) -> torch.Tensor:
            return torch.ones(1, 1, ROW_LENGTH, ROW_LENGTH).tril().bool()

    leaky = make("llama")
    leaky.__class__ = Leaky
    with pytest.raises(KdscaleError, match="packed documents"):
        cache.check(leaky)
