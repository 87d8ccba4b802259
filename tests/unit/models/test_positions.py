"""How many tokens models take: tables, tables that begin behind the padding, none."""

from typing import Any

import pytest
import torch
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from kdscale.config.data import ChunksConfig
from kdscale.config.task import Task
from kdscale.config.teacher import ModelConfig
from kdscale.errors import KdscaleError
from kdscale.models.load import build_model, make_config
from kdscale.models.positions import (
    check_positions,
    position_notes,
    usable_positions,
)
from kdscale.models.tasks import TaskSpec, name_class
from tests.architectures import tiny_config

IDS = {"bos_token_id": 0, "eos_token_id": 2, "pad_token_id": 1}
SIZES = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
}
MASKED = TaskSpec("masked-lm")
# How many of the positions are for tokens, by architecture; the padding id is 1.
TABLES: list[tuple[Task, str, int]] = [
    ("masked-lm", "bert", 0),
    ("masked-lm", "roberta", 2),
    ("masked-lm", "roberta-prelayernorm", 2),
    ("masked-lm", "xlm-roberta", 2),
    ("masked-lm", "camembert", 2),
    ("masked-lm", "mpnet", 2),
    ("masked-lm", "longformer", 2),
    ("masked-lm", "esm", 2),
    ("masked-lm", "ibert", 2),
    ("masked-lm", "nystromformer", 0),
    ("masked-lm", "distilbert", 0),
    ("causal-lm", "roberta", 2),
    ("causal-lm", "gpt2", 0),
    ("causal-lm", "opt", 0),
    ("causal-lm", "gpt_neo", 0),
    ("causal-lm", "gptj", 0),
    ("causal-lm", "codegen", 0),
    ("causal-lm", "gpt_bigcode", 0),
    ("causal-lm", "biogpt", 0),
    ("causal-lm", "ctrl", 0),
    ("causal-lm", "bart", 0),
    ("causal-lm", "openai-gpt", 0),
]


def shape_of(architecture: str, task: Task = "causal-lm", **options: Any) -> Any:
    config = CONFIG_MAPPING[architecture](**{"pad_token_id": 1, "vocab_size": 97, **options})
    name_class(config, task)
    return config


@pytest.mark.parametrize(("task", "architecture", "lost"), TABLES)
def test_a_table_ends(task: Task, architecture: str, lost: int) -> None:
    config = shape_of(architecture, task)
    claimed = config.max_position_embeddings
    assert usable_positions(config) == claimed - lost
    check_positions(config, claimed - lost, "teacher")
    with pytest.raises(KdscaleError, match=f"to at most {claimed - lost},"):
        check_positions(config, claimed - lost + 1, "teacher")


@pytest.mark.parametrize("padding", [0, 3, 50])
def test_a_table_behind_the_padding_begins_behind_its_id(padding: int) -> None:
    assert usable_positions(shape_of("roberta", "masked-lm", pad_token_id=padding)) == 511 - padding


@pytest.mark.parametrize(
    "architecture", ["llama", "qwen3", "gpt_neox", "bloom", "falcon", "mamba", "xglm"]
)
def test_others_have_no_end(architecture: str) -> None:
    config = shape_of(architecture)
    assert usable_positions(config) is None
    check_positions(config, 1 << 20, "teacher")


def test_what_an_alibi_model_is_built_for_is_its_end() -> None:
    assert usable_positions(shape_of("mpt", max_seq_len=64)) == 64


def test_nobody_elses_random_numbers_are_used() -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    usable_positions(shape_of("bert", "masked-lm", max_position_embeddings=77))
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize("architecture", ["roberta", "xlm-roberta", "camembert", "mpnet", "esm"])
def test_a_student_made_here_has_positions_for_its_rows(architecture: str) -> None:
    model = ModelConfig(architecture=architecture, options=SIZES)
    for length, have in ((64, 514), (512, 514), (600, 602)):
        config = make_config(model, 60, IDS, length, MASKED)
        assert config.max_position_embeddings == have
    ids = torch.full((1, 600), 7)
    with torch.no_grad():
        built = build_model(config, 0).eval()
        assert built(input_ids=ids, attention_mask=torch.ones_like(ids)).logits.shape[1] == 600


def test_a_students_own_number_of_positions_is_kept_or_refused() -> None:
    options = SIZES | {"max_position_embeddings": 100}
    model = ModelConfig(architecture="roberta", options=options)
    assert make_config(model, 60, IDS, 98, MASKED).max_position_embeddings == 100
    with pytest.raises(KdscaleError, match=r"of 100 positions, cannot take 99 tokens: it keeps 2"):
        make_config(model, 60, IDS, 99, MASKED)
    gpt2 = ModelConfig(architecture="gpt2", options={"n_positions": 32, "n_embd": 8, "n_head": 2})
    with pytest.raises(KdscaleError, match="'gpt2' of 32 positions, cannot take 64 tokens"):
        make_config(gpt2, 60, IDS, 64)
    chunks = ChunksConfig(length=98)
    classifier = TaskSpec("sequence-classification", ("a", "b"), chunks)
    assert make_config(model, 60, IDS, 98 * 4, classifier).max_position_embeddings == 100


def test_rotary_positions_beyond_the_training_are_a_note() -> None:
    config = shape_of("llama", max_position_embeddings=2048)
    assert position_notes(config, 2048, "teacher") == []
    (note,) = position_notes(config, 2049, "teacher")
    assert "Sequences of 2,049 tokens are longer than the 2,048 positions that the teacher" in note
    assert position_notes(shape_of("gpt2"), 4096, "teacher") == []  # refused instead


@pytest.mark.parametrize("original", [512, None])
def test_scaled_rotary_positions_reach_as_far_as_the_scaling_says(original: int | None) -> None:
    scaling = {"rope_type": "yarn", "factor": 4.0, "rope_theta": 1e4}
    if original:
        scaling["original_max_position_embeddings"] = original
    config = shape_of("llama", max_position_embeddings=512, rope_parameters=scaling)
    assert position_notes(config, 2048, "student") == []
    assert "the 2,048 positions" in position_notes(config, 2049, "student")[0]


@pytest.mark.parametrize("kind", ["longrope", "dynamic"])
def test_rows_whose_length_scales_all_their_positions_are_refused(kind: str) -> None:
    """As the row check would do at the start of a capture: see test_sequence_check.py."""
    scaling: dict[str, Any] = {"rope_type": kind, "rope_theta": 1e4, "factor": 8.0}
    if kind == "longrope":
        factors = {"short_factor": [1.0] * 4, "long_factor": [8.0] * 4}
        scaling |= {**factors, "original_max_position_embeddings": 64}
        config = tiny_config("phi3", rope_parameters=scaling, original_max_position_embeddings=64)
    else:
        config = tiny_config("llama", rope_parameters=scaling, max_position_embeddings=64)
    check_positions(config, 64, "teacher")
    with pytest.raises(
        KdscaleError, match=rf"sequences of more than 64 tokens \({kind}\)"
    ) as refused:
        check_positions(config, 65, "teacher")
    assert refused.value.fix == "Set data.seq_len to at most 64."
