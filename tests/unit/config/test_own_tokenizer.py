"""Config of a student with its own tokenizer: what it needs, and what it cannot have."""

from copy import deepcopy
from typing import Any

import pytest
from pydantic import ValidationError

from kdscale.config import RunConfig
from kdscale.config.operational import recipe
from kdscale.config.student import DistillConfig
from tests.changes import changed

GOOD: dict[str, Any] = {
    "name": "own",
    "output": "out",
    "teacher": {"load": "some/teacher"},
    "data": {"tokenizer": {"kind": "teacher"}},
    "distill": {
        "tokenizer": "student",
        "student": {"model": {"architecture": "llama"}, "tokenizer": "some/tokenizer"},
        "training": {"steps": 2, "global_batch_size": 2},
    },
}
REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "no tokenizer": ({"distill__student": {"model": {"architecture": "llama"}}}, "has one"),
    "unused tokenizer": ({"distill__tokenizer": "teacher"}, "of a student with its own tokenizer"),
    "unused seq_len": (
        {
            "distill__tokenizer": "teacher",
            "distill__seq_len": 64,
            "distill__student": {"model": {"architecture": "llama"}},
        },
        "set tokenizer to `student`, or drop them",
    ),
    "layers of the teacher": (
        {"distill__student": {"teacher_layers": [0], "tokenizer": "some/tokenizer"}},
        "the teacher's embeddings are of other ids",
    ),
    "online": ({"distill__targets": "online"}, "takes its targets from a cache"),
    "divergence": (
        {"distill__loss": {"divergence": {"kind": "reverse_kl"}}, "cache__codec": {"kind": "full"}},
        "drop the divergence 'reverse_kl'",
    ),
    "temperature": ({"cache__temperature": 2.0}, "cache.temperature 2 do not give: set it to 1"),
    "chat": (
        {"data__train": {"kind": "jsonl", "path": "a"}, "data__chat": {"field": "messages"}},
        "not for data.chat",
    ),
    "task": ({"task": "masked-lm"}, "not for the task masked-lm"),
}


def test_the_tokenizer_is_that_of_the_place_or_of_the_loaded_student() -> None:
    own = RunConfig.model_validate(GOOD)
    assert own.aligns
    assert own.distill.student.tokenizer_source == "some/tokenizer"
    assert own.student_seq_len == own.data.seq_len == 128
    loaded = changed(
        deepcopy(GOOD), {"distill__student": {"load": "some/student"}, "distill__seq_len": 160}
    )
    found = RunConfig.model_validate(loaded)
    assert found.distill.student.tokenizer_source == "some/student"
    assert found.student_seq_len == 160


@pytest.mark.parametrize("name", REFUSED)
def test_what_does_not_go_with_it_is_refused_with_a_fix(name: str) -> None:
    changes, words = REFUSED[name]
    with pytest.raises(ValidationError, match=words.replace(".", r"\.")):
        RunConfig.model_validate(changed(deepcopy(GOOD), changes))


def test_runs_without_it_keep_their_recipe() -> None:
    plain = DistillConfig.model_validate(
        {"student": {"teacher_layers": [0]}, "training": {"steps": 2, "global_batch_size": 2}}
    )
    found = recipe(plain)
    assert set(found) == {"student", "targets", "online", "loss", "training", "curriculum"}
    assert "tokenizer" not in found["student"]
    own = recipe(RunConfig.model_validate(GOOD).distill)
    assert own["tokenizer"] == "student"
    assert own["student"]["tokenizer"] == "some/tokenizer"
