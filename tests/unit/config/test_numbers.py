"""No config takes a number that nothing can be done with: a sweep over every field of every one."""

import importlib
import math
import pkgutil
from collections.abc import Iterator
from typing import Any, get_args

import pytest
from pydantic import ValidationError

import kdscale.config
import kdscale.plan.calibration
from kdscale.config import parse_config
from kdscale.config.base import Config
from kdscale.config.cache import CacheConfig
from kdscale.config.chat import ChatConfig
from kdscale.config.evaluate import SamplesConfig
from kdscale.config.online import OnlineConfig
from kdscale.config.teacher import ModelConfig
from kdscale.config.training import OptimiserConfig, TrainingConfig
from kdscale.errors import KdscaleError
from tests.unit.report.sample import CONFIG

BAD = [math.inf, -math.inf, math.nan, "inf", "-Infinity", "nan"]


def models(base: type[Config] = Config) -> Iterator[type[Config]]:
    for module in pkgutil.iter_modules(kdscale.config.__path__, "kdscale.config."):
        importlib.import_module(module.name)
    for model in base.__subclasses__():
        yield model
        yield from models(model)


def holds(annotation: Any, kind: type) -> bool:
    return annotation is kind or any(holds(part, kind) for part in get_args(annotation))


def float_fields() -> list[tuple[type[Config], str, bool]]:
    """(model, field, whether floats are in a tuple) of all fields with floats."""
    found = []
    for model in models():
        for name, field in model.model_fields.items():
            # A mapping of any values may hold a text "inf".
            if holds(field.annotation, float) and not holds(field.annotation, str):
                found.append((model, name, "tuple" in str(field.annotation)))
    return found


def test_the_sweep_finds_the_fields() -> None:
    found = {f"{model.__name__}.{name}" for model, name, _ in float_fields()}
    assert len(found) > 55
    assert found > {
        *("OptimiserConfig.betas", "Schedule.values", "Schedule.start", "Hardware.flops"),
        *("CurriculumConfig.stages", "SampleCodec.tau", "WorkersConfig.gpus"),
        *("ReusedCache.weight", "SamplesConfig.temperature", "Calibration.get_bytes"),
    }


@pytest.mark.parametrize("bad", BAD, ids=str)
def test_no_field_takes_infinity_or_nan(bad: Any) -> None:
    for model, name, several in float_fields():
        with pytest.raises(ValidationError) as refused:
            model.model_validate({name: [bad, bad] if several else bad})
        of_field = [error for error in refused.value.errors() if error["loc"][:1] == (name,)]
        assert of_field, f"{model.__name__}.{name} takes {bad}"
        # Infinity may be refused by a bound as well; where there is none, by what it is.
        assert any(
            error["type"] in ("finite_number", "float_type", "int_type", "int_parsing")
            or error["type"].startswith(("less_than", "greater_than"))
            for error in of_field
        )


@pytest.mark.parametrize("bad", [math.inf, -math.inf, math.nan], ids=str)
def test_no_variable_of_a_template_is_infinity_or_nan(bad: float) -> None:
    with pytest.raises(ValidationError):
        ChatConfig(variables={"budget": bad})


def test_a_field_without_bounds_says_what_is_wrong() -> None:
    with pytest.raises(KdscaleError, match=r"kd_weight.start: Input should be a finite number"):
        parse_config(CONFIG, ["distill.loss.kd_weight={kind: constant, start: .nan}"])


@pytest.mark.parametrize(
    ("override", "named"),
    [
        ("optimiser.betas=[1.5, 2]", "betas.0: Input should be less than 1"),
        ("optimiser.betas=[0.9, 1]", "betas.1: Input should be less than 1"),
        ("optimiser.betas=[-0.1, 0.9]", "betas.0: Input should be greater than or equal to 0"),
        ("optimiser.learning_rate=.inf", "learning_rate: Input should be "),
        ("optimiser.learning_rate=1e39", "learning_rate: Input should be less than or equal to 10"),
        ("optimiser.learning_rate=.nan", "learning_rate: Input should be a finite number"),
        ("optimiser.clip=.inf", "clip: Input should be a finite number"),
        ("optimiser.weight_decay=.nan", "weight_decay: Input should be a finite number"),
        ("optimiser.weight_decay=1e4", "learning_rate 0.001 times weight_decay 10000 is 1 or more"),
        ("dropout=.nan", "dropout: Input should be a finite number"),
    ],
)
def test_what_no_optimiser_takes_is_refused_by_the_config(override: str, named: str) -> None:
    with pytest.raises(KdscaleError) as refused:
        parse_config(CONFIG, [f"distill.training.{override}"])
    assert "distill.training." in refused.value.problem
    assert named in refused.value.problem


def test_what_an_optimiser_takes_is_taken() -> None:
    for betas in [(0, 0), (0.9, 0.999), (0.9, 0.9999999)]:
        assert OptimiserConfig(betas=betas).betas == betas
    assert OptimiserConfig(clip=1e6, weight_decay=0, learning_rate=10).clip == 1e6
    assert TrainingConfig(steps=1, global_batch_size=1, dropout=0).dropout == 0


@pytest.mark.parametrize("temperature", [0, -1, 1e-30, 1e-3, 1e3, 1e39])
def test_temperatures_out_of_range(temperature: float) -> None:
    with pytest.raises(ValidationError, match="temperature"):
        CacheConfig(temperature=temperature)
    with pytest.raises(ValidationError, match="temperature"):
        SamplesConfig(temperature=temperature)
    with pytest.raises(ValidationError, match="temperature"):
        OnlineConfig.model_validate({"temperature": {"kind": "constant", "start": temperature}})


def test_options_of_an_architecture_are_finite() -> None:
    options = {"rope_scaling": {"factor": math.nan}, "sizes": [1.0, math.inf]}
    with pytest.raises(ValidationError, match=r"rope_scaling.factor nan, sizes.1 inf: give a"):
        ModelConfig(architecture="llama", options=options)
