"""A run without a teacher: a finished cache stands for it, or the config is refused."""

from typing import Any

import pytest
from pydantic import ValidationError

from kdscale.config import RunConfig


def tree(**changes: Any) -> dict[str, Any]:
    """Return a config without a teacher; `changes` are whole sections."""
    return {
        "name": "absent",
        "output": "runs/absent",
        "data": {"tokenizer": {"kind": "teacher"}},
        "cache": {"reuse": "imported"},
        "distill": {
            "student": {"load": "student"},
            "training": {"steps": 1, "global_batch_size": 8},
        },
        **changes,
    }


def test_a_reused_cache_stands_for_the_teacher() -> None:
    config = RunConfig.model_validate(tree())
    assert config.teacher.is_absent
    several = [{"url": "a"}, {"url": "b", "weight": 2}]
    assert RunConfig.model_validate(tree(cache={"reuse": several})).teacher.is_absent
    assert not RunConfig.model_validate(
        tree(teacher={"load": "somebody/teacher"})
    ).teacher.is_absent


TRAINING = {"steps": 1, "global_batch_size": 8}


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"cache": {}}, "there is no teacher: give teacher.load or teacher.model"),
        ({"cache": {"append_to": "imported"}}, "there is no teacher"),
        ({"data": {}}, "set data.tokenizer.kind to 'teacher'"),
        ({"teacher": {"training": TRAINING}}, "`training` needs a teacher"),
        (
            {"distill": {"student": {"teacher_layers": [0]}, "training": TRAINING}},
            "distill.student.teacher_layers needs a teacher",
        ),
        (
            {
                "distill": {
                    "student": {"load": "student"},
                    "training": TRAINING,
                    "targets": "online",
                }
            },
            "distill.targets: online needs a teacher",
        ),
    ],
)
def test_what_needs_the_teacher_is_refused(changes: dict[str, Any], problem: str) -> None:
    with pytest.raises(ValidationError, match=problem):
        RunConfig.model_validate(tree(**changes))
