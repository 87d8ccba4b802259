"""The expectation of a run: the plan's seconds, and none where no plan can be made."""

import pytest

from kdscale.errors import KdscaleError
from kdscale.plan import expect as module
from kdscale.plan.expect import expect
from kdscale.plan.hardware import find_hardware
from kdscale.plan.inputs import read_inputs
from kdscale.plan.plan import make_plan
from tests.unit.plan.settings import setting


def test_it_has_the_seconds_of_a_plan() -> None:
    inputs = read_inputs(setting("cpu").config, find_hardware("cpu"))
    found = expect(inputs.config)
    assert found is not None
    stages = {stage.name: stage for stage in make_plan(inputs).stages}
    assert set(found.seconds) == set(stages)
    for name, seconds in found.seconds.items():
        assert seconds == pytest.approx(stages[name].seconds.total)
    assert (found.hardware, found.on_demand) == ("cpu", 0)


@pytest.mark.parametrize("error", [KdscaleError("no figures", "give some"), ZeroDivisionError()])
def test_a_plan_that_fails_ends_no_run(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(module, "read_inputs", fail)
    assert expect(setting("cpu").config) is None
