"""What the config alone can tell of a student's start."""

from pathlib import Path
from typing import Any

import pytest

from kdscale.config.initial import LayerChoice
from kdscale.config.load import load_config
from kdscale.errors import KdscaleError

QUICKSTART = Path(__file__).parents[3] / "jobs" / "configs" / "quickstart.yaml"
# The quickstart's student has a config of its own.
STUDENT = "distill.student="


def student_of(fields: str) -> Any:
    return load_config(QUICKSTART, [STUDENT + fields]).distill.student


def test_layers_are_a_list_or_a_rule() -> None:
    assert student_of("{teacher_layers: [3, 0, 0]}").teacher_layers == [3, 0, 0]
    even = student_of("{teacher_layers: {kind: even, count: 2}}").teacher_layers
    assert even == LayerChoice(kind="even", count=2)


def test_only_a_start_from_the_teacher_needs_its_files() -> None:
    assert student_of("{teacher_layers: [0]}").takes_from_teacher
    assert student_of("{model: {architecture: gpt2}, copy_embeddings: true}").takes_from_teacher
    assert not student_of("{model: {architecture: gpt2}}").takes_from_teacher
    assert not student_of(
        "{load: some/model, layers: [0], width: {hidden_size: 8}}"
    ).takes_from_teacher


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ("{teacher_layers: []}", "`teacher_layers` is empty"),
        ("{teacher_layers: {kind: odd, count: 2}}", r"choice\.kind: Input should be 'even' or"),
        (
            "{teacher_layers: {kind: even, count: 1}}",
            r"choice\.count: .*greater than or equal to 2",
        ),
        ("{teacher_layers: [a]}", r"teacher_layers\.layers\.0: .*integer"),
        ("{teacher_layers: [0], model: {architecture: gpt2}}", "either `model` or"),
        ("{}", "either `model` or"),
        ("{teacher_layers: [0], copy_embeddings: true}", "drop copy_embeddings"),
        (
            "{load: a/b, model: {architecture: gpt2}}",
            "either `model` or `teacher_layers`, or `load`",
        ),
        ("{load: a/b, teacher_layers: [0]}", "choose `layers` of the model in `load`"),
        ("{load: a/b, layers: []}", "`layers` is empty"),
        ("{load: a/b, copy_embeddings: true}", "`load` takes the embeddings too"),
        ("{teacher_layers: [0], layers: [0]}", "those of the model in `load`: give it"),
        ("{model: {architecture: gpt2}, revision: main}", "those of the model in `load`: give it"),
        ("{teacher_layers: [0], width: {}}", "`width` gives no size"),
        ("{teacher_layers: [0], width: {hidden_size: 0}}", r"hidden_size: .*greater than 0"),
        (
            "{teacher_layers: [0], width: {num_attention_heads: 6, num_key_value_heads: 4}}",
            "num_attention_heads 6 is no multiple of num_key_value_heads 4",
        ),
        ("{model: {architecture: gpt2}, width: {hidden_size: 8}}", "`model` has its own"),
        (
            "{model: {architecture: gpt2, options: {tie_word_embeddings: true}}, "
            "tie_embeddings: true}",
            "either tie_embeddings or model.options.tie_word_embeddings",
        ),
    ],
)
def test_a_contradiction_is_named(fields: str, message: str) -> None:
    with pytest.raises(KdscaleError, match=message):
        student_of(fields)
