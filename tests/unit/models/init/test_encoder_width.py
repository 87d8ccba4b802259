"""Narrower copies of encoders: what is kept, against slicing written out by hand."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import PreTrainedModel

from kdscale.config.student import StudentConfig
from kdscale.config.teacher import ModelConfig
from kdscale.errors import KdscaleError
from kdscale.models.forward import compute_logits
from kdscale.models.init.calibrate import measure
from kdscale.models.init.plan import InitPlan, build_student, plan_student
from kdscale.models.init.width import Kept
from kdscale.models.load import build_model, load_config_of, make_config
from kdscale.models.tasks import TaskSpec
from tests.unit.models.teachers import LENGTH, TOKENIZER, VOCAB, files, make_rows

HIDDEN, NEURONS, HEADS, HEAD, LAYERS = 24, 20, 4, 6, 3
CLASSIFIER = TaskSpec("sequence-classification", ("a", "b", "c"))
SMALL = {"hidden_size": 12, "intermediate_size": 7, "num_attention_heads": 2}
IDS = torch.arange(3, 3 + LENGTH)[None]
EVERYTHING = torch.ones_like(IDS)


def make_teacher(folder: Path, architecture: str, task_spec: TaskSpec) -> PreTrainedModel:
    options = {
        "hidden_size": HIDDEN,
        "intermediate_size": NEURONS,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "max_position_embeddings": 40,
    }
    model = ModelConfig(architecture=architecture, options=options)
    teacher = build_model(
        make_config(model, VOCAB, TOKENIZER["special_ids"], LENGTH, task_spec), seed=1
    ).eval()
    with torch.no_grad():
        for parameter in teacher.parameters():
            parameter += 0.2 * torch.randn(
                parameter.shape, generator=torch.Generator().manual_seed(parameter.numel())
            )
    teacher.save_pretrained(folder)
    return teacher


def start(
    folder: Path, teacher: PreTrainedModel, layers: list[int], **width: int
) -> tuple[PreTrainedModel, InitPlan, Kept]:
    student = StudentConfig.model_validate({"teacher_layers": layers, "width": width})
    planned = plan_student(student, load_config_of(folder), **TOKENIZER)
    kept = planned.keep(measure(teacher, make_rows(), torch.device("cpu")))
    return build_student(planned, files(folder), kept, seed=9).eval(), planned, kept


def cut_by_hand(name: str, whole: np.ndarray, kept: Kept, layer: int) -> np.ndarray:
    hidden, neurons = list(kept.hidden), list(kept.neurons[layer])
    queries = list(kept.queries[layer])
    is_bias = name.endswith("bias")
    if any(f"self.{kind}" in name for kind in ("query", "key", "value")):
        return whole[queries] if is_bias else whole[queries][:, hidden]
    if "attention.output.dense" in name:
        return whole[hidden] if is_bias else whole[hidden][:, queries]
    if "intermediate" in name:
        return whole[neurons] if is_bias else whole[neurons][:, hidden]
    if "output.dense" in name:
        return whole[hidden] if is_bias else whole[hidden][:, neurons]
    if "pooler" in name or "transform.dense" in name or name.startswith("classifier.dense"):
        return whole[hidden] if is_bias else whole[hidden][:, hidden]
    if "LayerNorm" in name:
        return whole[hidden]
    if "classifier" in name or "decoder" in name or "predictions.bias" in name:
        return whole if is_bias else whole[:, hidden]
    assert "embeddings" in name
    return whole[:, hidden]


@pytest.mark.parametrize(
    ("architecture", "task_spec"),
    [("bert", CLASSIFIER), ("bert", TaskSpec("masked-lm")), ("roberta", CLASSIFIER)],
)
def test_a_narrower_encoder_is_cut_as_by_hand(
    tmp_path: Path, architecture: str, task_spec: TaskSpec
) -> None:
    teacher = make_teacher(tmp_path, architecture, task_spec)
    student, planned, kept = start(tmp_path, teacher, [0, 2], **SMALL)
    theirs = teacher.state_dict()
    for name, tensor in student.state_dict().items():
        layer = 1 if "layer.1." in name else 0
        whole = theirs[name.replace("layer.1.", "layer.2.")].numpy()
        assert np.array_equal(tensor.numpy(), cut_by_hand(name, whole, kept, layer)), name
    assert student.config.hidden_size == 12
    assert "random" not in str(planned.provenance).splitlines()[0]
    outputs = 3 if task_spec is CLASSIFIER else VOCAB
    assert compute_logits(student, IDS, EVERYTHING, outputs).shape == (1, LENGTH, outputs)


def test_an_encoder_that_keeps_all_is_its_teacher(tmp_path: Path) -> None:
    teacher = make_teacher(tmp_path, "bert", CLASSIFIER)
    student, _, _ = start(tmp_path, teacher, [0, 1, 2], hidden_size=HIDDEN)
    found, expected = (compute_logits(m, IDS, EVERYTHING, 3) for m in (student, teacher))
    assert torch.equal(found, expected)


def test_statistics_are_means_over_tokens(tmp_path: Path) -> None:
    teacher = make_teacher(tmp_path, "bert", CLASSIFIER)
    rows = make_rows()
    found = measure(teacher, rows, torch.device("cpu"))
    neurons, heads, channels = ([[] for _ in range(LAYERS)] for _ in range(3))
    base: Any = teacher.base_model
    for ids, segments in zip(rows.input_ids, rows.segment_ids, strict=True):
        used = torch.from_numpy(ids[segments != 0]).long()[None]
        with torch.no_grad():
            x = base.embeddings(used)
            for number, layer in enumerate(base.encoder.layer):
                own = layer.attention.self

                def split(of: torch.Tensor) -> torch.Tensor:
                    return of.view(1, -1, HEADS, HEAD).transpose(1, 2)

                q, k, v = (split(part(x)) for part in (own.query, own.key, own.value))
                out = (q @ k.transpose(2, 3) / HEAD**0.5).softmax(-1) @ v
                heads[number].append(out[0].norm(dim=-1).T)
                joined = out.transpose(1, 2).flatten(2)
                first = layer.attention.output.LayerNorm(layer.attention.output.dense(joined) + x)
                inner = torch.nn.functional.gelu(layer.intermediate.dense(first))
                neurons[number].append(inner[0].abs())
                x = layer.output.LayerNorm(layer.output.dense(inner) + first)
                channels[number].append(first[0].abs() + x[0].abs())
    for number in range(LAYERS):
        for got, parts in (
            (found.neurons, neurons),
            (found.heads, heads),
            (found.channels, channels),
        ):
            expected = torch.cat(parts[number]).mean(dim=0).numpy()
            np.testing.assert_allclose(got[number], expected, rtol=1e-4)


def test_sizes_that_an_encoder_cannot_have_are_refused(tmp_path: Path) -> None:
    teacher = make_teacher(tmp_path, "bert", CLASSIFIER)
    with pytest.raises(KdscaleError, match="4 heads of 6 dimensions has a hidden size of 24"):
        start(tmp_path, teacher, [0], hidden_size=12)
