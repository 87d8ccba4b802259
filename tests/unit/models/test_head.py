"""Hidden states and head give the model's own logits, whatever the architecture."""

from typing import Any

import pytest
import torch

from kdscale.config.teacher import ModelConfig
from kdscale.losses.fused import head_and_loss
from kdscale.models.forward import RowTensors, compute_logits, target_logits
from kdscale.models.head import ModelWithHead
from kdscale.models.load import build_model, make_config
from kdscale.models.tasks import CAUSAL_LM, TaskSpec

VOCAB, LENGTH = 37, 12
SPECIAL = {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0}
SMALL = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
}
LINEAR: dict[str, dict[str, Any]] = {
    "llama": SMALL,
    "llama tied": {**SMALL, "tie_word_embeddings": True},
    "qwen3": {**SMALL, "head_dim": 8},
    "gpt2": {"n_embd": 16, "n_layer": 2, "n_head": 2},
    "phi": SMALL,
    "gemma2": {**SMALL, "head_dim": 8, "final_logit_softcapping": 0.5},
    "cohere": {**SMALL, "logit_scale": 0.25},
    "granite": {**SMALL, "logits_scaling": 4.0},
}
ENCODER = {key: value for key, value in SMALL.items() if "key_value" not in key}
# Heads with a transform before their linear map.
MASKED: dict[str, dict[str, Any]] = {
    "bert": ENCODER,
    "bert untied": {**ENCODER, "tie_word_embeddings": False},
    "roberta": ENCODER,
    "distilbert": {"dim": 16, "hidden_dim": 24, "n_layers": 2, "n_heads": 2},
    "deberta-v2": ENCODER,
    "electra": {**ENCODER, "embedding_size": 8},
    "albert": {**ENCODER, "embedding_size": 8},
    "modernbert": ENCODER,
}


def make(name: str, options: dict[str, Any], task_spec: TaskSpec = CAUSAL_LM) -> ModelWithHead:
    model = ModelConfig(architecture=name.split()[0], options=options, pad_vocab_to_multiple_of=8)
    torch.manual_seed(1)
    found = build_model(make_config(model, VOCAB, SPECIAL, LENGTH, task_spec), 0)
    for parameter in found.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return ModelWithHead(found, VOCAB).eval()


def rows() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    segments = torch.tensor([[1] * 7 + [2] * 5, [1] * LENGTH])
    return torch.randint(VOCAB, (2, LENGTH), generator=generator), segments


def gradients(model: ModelWithHead, *, fused: bool) -> tuple[float, dict[str, torch.Tensor]]:
    ids, segments = rows()
    labels = torch.roll(ids, -1, dims=1).flatten()
    model.zero_grad()
    if fused:
        hidden = model.hidden(ids, segments).flatten(0, 1)
        loss = head_and_loss(hidden, model.head, labels).objective
    else:
        logits = compute_logits(model.model, ids, segments, VOCAB).flatten(0, 1)
        loss = torch.nn.functional.cross_entropy(logits, labels, reduction="sum")
    loss.backward()
    found = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    return float(loss.detach()), found


def check_training(model: ModelWithHead) -> None:
    loss, found = gradients(model, fused=True)
    expected_loss, expected = gradients(model, fused=False)
    assert loss == pytest.approx(expected_loss, rel=1e-5)
    assert found.keys() == expected.keys()
    for parameter, gradient in expected.items():
        torch.testing.assert_close(found[parameter], gradient, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", LINEAR)
def test_head_and_loss_train_as_the_models_own_logits_do(name: str) -> None:
    model = make(name, LINEAR[name])
    model(ModelWithHead.detect_head, torch.device("cpu"))
    assert model.head.weight is not None
    check_training(model)


# Logits scaled by a number that is no power of two are rounded once more, or once less.
@pytest.mark.parametrize("name", [*LINEAR, "granite of 6"])
@pytest.mark.parametrize("seed", range(3))
def test_a_head_is_found_in_bfloat16(name: str, seed: int) -> None:
    options = LINEAR.get(name, {**SMALL, "logits_scaling": 6.0})
    model = make(name, options)
    torch.manual_seed(seed)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=1.0)
    model.to(torch.bfloat16)(ModelWithHead.detect_head, torch.device("cpu"))
    assert model.head.weight is not None


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_head_that_is_not_found_is_said(
    dtype: torch.dtype, caplog: pytest.LogCaptureFixture
) -> None:
    model = make("llama", SMALL)
    model(ModelWithHead.detect_head, torch.device("cpu"))
    assert caplog.text == ""
    output: Any = model.model.get_output_embeddings()
    output.register_forward_hook(lambda _, __, logits: 1.05 * logits)
    model.to(dtype)(ModelWithHead.detect_head, torch.device("cpu"))
    assert model.head.weight is None
    assert "logits of this llama are not those of its last linear map" in caplog.text


# Of logits around 1, which are changed by less than bfloat16 rounds the largest of them.
UNKNOWN = {
    "factor": lambda logits: 1.004 * logits,
    "cap": lambda logits: 16 * torch.tanh(logits / 16),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("change", UNKNOWN)
@pytest.mark.parametrize("seed", range(3))
def test_a_small_change_that_a_head_does_not_know_is_no_rounding(
    change: str, seed: int, dtype: torch.dtype
) -> None:
    model = make("llama", SMALL)
    torch.manual_seed(seed)
    output: Any = model.model.get_output_embeddings()
    torch.nn.init.normal_(output.weight)
    output.register_forward_hook(
        lambda _, __, logits: UNKNOWN[change](logits.float()).to(logits.dtype)
    )
    model.to(dtype)(ModelWithHead.detect_head, torch.device("cpu"))
    assert model.head.weight is None


@pytest.mark.parametrize("name", MASKED)
def test_a_masked_language_model_projects_only_what_the_loss_asks_for(name: str) -> None:
    model = make(name, MASKED[name], TaskSpec("masked-lm"))
    model(ModelWithHead.detect_head, torch.device("cpu"))
    assert model.head.weight is not None
    rows_of_head = []
    output: Any = model.model.get_output_embeddings()
    output.register_forward_hook(lambda _, __, logits: rows_of_head.append(logits.numel()))
    model.hidden(*rows())
    assert rows_of_head == [0]
    check_training(model)


@pytest.mark.parametrize(
    ("name", "task_spec"),
    [*((name, CAUSAL_LM) for name in LINEAR), *((name, TaskSpec("masked-lm")) for name in MASKED)],
)
def test_only_the_logits_of_targets_are_made(name: str, task_spec: TaskSpec) -> None:
    model = make(name, (LINEAR if task_spec is CAUSAL_LM else MASKED)[name], task_spec).model
    ids, segments = rows()
    made = []
    output: Any = model.get_output_embeddings()
    hook = output.register_forward_hook(lambda _, __, logits: made.append(logits.shape[:-1]))
    for count in (7, 1, 0):
        mask = torch.zeros_like(ids, dtype=torch.bool)
        mask.view(-1)[torch.arange(count) * 3] = True
        with torch.no_grad():
            found = target_logits(model, RowTensors(ids, segments, mask, ids), VOCAB)
        assert made.pop() == (1, count)
        with torch.no_grad():
            expected = compute_logits(model, ids, segments, VOCAB)[mask]
        assert made.pop() == ids.shape
        torch.testing.assert_close(found, expected)
    hook.remove()


def never_called(model: Any) -> None:
    output = model.get_output_embeddings()
    model.cls.predictions.decoder = torch.nn.Linear(16, 40)
    model.get_output_embeddings = lambda: output


def without_rows(model: Any) -> None:
    """As models do that take the padding out."""
    predictions = model.cls.predictions

    def forward(hidden: torch.Tensor) -> torch.Tensor:
        flat = predictions.decoder(predictions.transform(hidden).flatten(0, 1))
        return flat.view(*hidden.shape[:2], -1)

    predictions.forward = forward


@pytest.mark.parametrize("change", [never_called, without_rows])
def test_a_last_map_that_is_not_given_rows_is_left_alone(change: Any) -> None:
    model = make("bert", ENCODER, TaskSpec("masked-lm"))
    change(model.model)
    ids, segments = rows()
    mask = ids % 2 == 0
    with torch.no_grad():
        found = target_logits(model.model, RowTensors(ids, segments, mask, ids), VOCAB)
        assert torch.equal(found, compute_logits(model.model, ids, segments, VOCAB)[mask])
    model(ModelWithHead.detect_head, torch.device("cpu"))
    assert model.head.weight is None
    check_training(model)


def test_layers_are_the_same_before_a_transform() -> None:
    model = make("bert", ENCODER, TaskSpec("masked-lm"))
    _, expected = model.hidden_and_layers(*rows(), ["hidden"])
    model(ModelWithHead.detect_head, torch.device("cpu"))
    _, found = model.hidden_and_layers(*rows(), ["hidden"])
    assert len(found["hidden"]) == 2
    torch.testing.assert_close(found["hidden"], expected["hidden"])


def test_a_head_that_is_more_than_linear_keeps_its_logits() -> None:
    model = make("llama", SMALL)
    output: Any = model.model.get_output_embeddings()
    output.register_forward_hook(lambda _, __, logits: torch.tanh(logits))
    model(ModelWithHead.detect_head, torch.device("cpu"))
    assert model.head.weight is None
    check_training(model)


def test_dropout_stays_what_it_was() -> None:
    model = make("gpt2", {**LINEAR["gpt2"], "resid_pdrop": 0.5})
    model.train()
    model(ModelWithHead.detect_head, torch.device("cpu"))
    assert model.training
    assert model.head.weight is not None
