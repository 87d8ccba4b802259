"""The advised setting: it fits, costs what is said when it is planned itself, and is found."""

from typing import Any

import pytest

from kdscale.config import dump_config, parse_config
from kdscale.plan.advise import Advice, advise
from kdscale.plan.fit import shortage
from kdscale.plan.inputs import PlanInputs
from kdscale.plan.plan import make_plan
from kdscale.plan.render import render
from tests.unit.plan.settings import setting

# Gathering at 1.25 GB/s between machines takes longer than the small forwards.
SLOW: dict[str, Any] = {
    "cache__capture": {
        "workers": {"count": 2, "gpus": 1},
        "teacher_sharding": "zero3",
        "micro_batch_size": 1,
    }
}

MANY = 2e10  # tokens: else the start of the workers takes most of the time


def of_stage(inputs: PlanInputs, stage: str) -> Advice:
    (found,) = [each for each in advise(inputs) if each.stage == stage]
    return found


def taken(inputs: PlanInputs, advice: Advice) -> PlanInputs:
    return inputs.with_config(parse_config(dump_config(inputs.config), advice.changes))


@pytest.mark.parametrize("stage", ["cache", "distill"])
@pytest.mark.parametrize("hardware", ["H100", "A10G"])
def test_the_advice_fits_and_costs_what_it_says(hardware: str, stage: str) -> None:
    inputs = setting(hardware, **SLOW)
    found = of_stage(inputs, stage)
    changed = taken(inputs, found)
    assert shortage(stage, changed) is None
    (planned,) = [each for each in make_plan(changed).stages if each.name == stage]
    assert planned.device_hours == pytest.approx(found.device_hours)
    assert planned.memory is not None
    assert planned.memory.total == found.memory
    assert found.device_hours <= found.before
    assert 0 < found.computing <= 1
    # Taken, there is nothing left to advise.
    assert of_stage(changed, stage).changes == ()


def test_a_teacher_that_fits_a_device_runs_as_replicas_where_gathering_is_slow() -> None:
    found = of_stage(setting("A10G", MANY, **SLOW), "cache")
    assert found.changes == ("cache.capture.teacher_sharding=none",)
    assert found.device_hours < found.before


def test_a_reused_cache_leaves_the_student_alone_to_advise() -> None:
    found = advise(setting("H100", cache__reuse="s3://bucket/cache"))
    assert [each.stage for each in found] == ["distill"]


def test_the_text_gives_it_as_flags() -> None:
    text = render(make_plan(setting("A10G", MANY, **SLOW)))
    assert "cache: --set cache.capture.teacher_sharding=none\n  " in text
    assert "device hours instead of" in text
    assert "as cheap as any that fits" in render(make_plan(setting("H100")))
