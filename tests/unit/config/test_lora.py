"""Config of adapters: its forms, what it refuses, and fingerprints of runs without it."""

from typing import Any

import pytest
from pydantic import ValidationError

from kdscale.config.lora import LoraConfig
from kdscale.config.operational import recipe
from kdscale.config.student import StudentConfig


def student(**fields: Any) -> StudentConfig:
    return StudentConfig.model_validate({"teacher_layers": [0, 1], **fields})


def test_a_student_without_adapters_keeps_its_name() -> None:
    assert "lora" not in recipe(student())
    assert recipe(student(lora={}))["lora"] == {
        "r": 16,
        "alpha": 32.0,
        "dropout": 0.0,
        "target_modules": "all-linear",
        "quantise": "none",
    }


def test_target_modules_are_a_choice_or_names() -> None:
    found = LoraConfig.model_validate({"target_modules": ["q_proj", "v_proj"]})
    assert found.target_modules == ("q_proj", "v_proj")
    assert LoraConfig.model_validate(found.model_dump(mode="json")) == found
    for wrong, problem in (
        ([], "at least 1 item"),
        ("attention", "'all-linear' or 'architecture'"),
    ):
        with pytest.raises(ValidationError, match=problem):
            LoraConfig.model_validate({"target_modules": wrong})


@pytest.mark.parametrize("field", [{"r": 0}, {"alpha": 0}, {"dropout": 1.0}, {"quantise": "int8"}])
def test_values_out_of_range_are_refused(field: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        LoraConfig.model_validate(field)


def test_adapters_stand_beside_weights_that_are_trained_already() -> None:
    assert StudentConfig.model_validate({"load": "org/model", "lora": {}}).lora == LoraConfig()
    with pytest.raises(ValidationError, match="start from `teacher_layers` or `load`"):
        StudentConfig.model_validate({"model": {"architecture": "llama"}, "lora": {}})
