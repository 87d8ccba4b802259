"""Ranges, baseline, idle devices, interruptions and remarks of a plan, beside sums by hand."""

from typing import Any

import pytest

from kdscale.plan.overhead import baseline_cost, idle_devices, interruptions
from kdscale.plan.plan import make_plan
from kdscale.plan.ranges import Range
from kdscale.plan.remarks import remarks
from kdscale.plan.render import between, render
from tests.unit.plan.settings import LLAMA, setting
from tests.unit.plan.test_timing import MEASURED

FOUR = {"count": 4, "gpus": 1}


def kinds(**changes: Any) -> list[str]:
    return [remark.kind for remark in remarks(setting("H100", **changes))]


def test_a_range_is_of_devices_of_other_speeds() -> None:
    plan = make_plan(setting("H100"))
    for stage in plan.stages:
        seconds, low_high = stage.seconds, stage.device_hours_range
        devices = max(1, stage.workers)
        if stage.name == "prepare":  # computes on no device that is assumed to be of some speed
            assert low_high.low == low_high.high == pytest.approx(stage.device_hours)
            continue
        compute, encoding = seconds.compute + seconds.validation, seconds.encoding
        rest = seconds.total - compute - encoding
        for factor, bound in ((1.4, low_high.low), (0.7, low_high.high)):
            expected = (rest + (compute + encoding) / factor) * devices / 3600
            assert bound == pytest.approx(expected, rel=1e-6)
    total = plan.device_hours_range
    assert total.low <= plan.device_hours <= total.high
    assert total.high == pytest.approx(sum(s.device_hours_range.high for s in plan.stages))


def test_what_was_measured_or_given_is_surer_than_what_is_assumed() -> None:
    def spread(inputs: object) -> float:
        cache = make_plan(inputs).stages[2]  # type: ignore[arg-type]
        return cache.device_hours_range.high / cache.device_hours_range.low

    assumed = setting("cpu", tokens=32 * 64000)
    assert spread(assumed.with_measured(MEASURED)) < 1.1 / 0.9 + 1e-6
    assert spread(assumed.with_mfu(0.5)) < 1.1 / 0.9 + 1e-6 < spread(assumed) <= 2 + 1e-6


def test_the_baseline_costs_what_a_run_without_it_saves() -> None:
    found = baseline_cost(setting("H100"))
    assert found is not None
    with_it, without = (
        make_plan(setting("H100")),
        make_plan(setting("H100", distill__baseline=False)),
    )
    assert found.device_hours == pytest.approx(with_it.device_hours - without.device_hours)
    assert found.money.on_demand == pytest.approx(6.88 * found.device_hours)
    assert without.baseline is None
    assert "--set distill.baseline=false" in render(with_it)
    assert "--set distill.baseline=false" not in render(without)


def test_devices_idle_while_text_is_prepared_and_one_of_them_evaluates() -> None:
    one = {"count": 1, "gpus": 1}
    groups: dict[str, Any] = {"cache__capture": {"workers": FOUR}, "distill__workers": FOUR}
    inputs = setting("H100", **groups, evaluate__workers=one)
    seconds = {stage.name: stage.seconds.total for stage in make_plan(inputs).stages}
    found = {idle.stage: idle for idle in idle_devices(inputs)}
    assert (found["prepare"].devices, found["evaluate"].devices) == (4, 3)
    assert found["evaluate"].device_hours == pytest.approx(3 * seconds["evaluate"] / 3600)
    assert found["prepare"].money.on_demand == pytest.approx(4 * seconds["prepare"] / 3600 * 6.88)
    assert set(found) <= {"prepare", "teacher", "evaluate"}
    assert idle_devices(setting("cpu")) == []


def test_an_interruption_costs_half_an_interval_and_a_start() -> None:
    steps = {"steps": 1000, "checkpoint_every": 100, "global_batch_size": 8, "micro_batch_size": 4}
    inputs = setting("H100", distill__training=steps, distill__baseline=False)
    (stage,) = [s for s in make_plan(inputs).stages if s.name == "distill"]
    (found,) = [i for i in interruptions(inputs) if i.stage == "distill"]
    # 0.05 an hour for each machine, as the hardware table says.
    assert found.expected == pytest.approx(0.05 * stage.seconds.total / 3600)
    hundred_steps = (stage.seconds.total - stage.seconds.start_up) / 10
    assert found.seconds_each == pytest.approx(hundred_steps / 2 + 60)
    assert found.device_hours == pytest.approx(
        found.expected * found.seconds_each * stage.workers / 3600
    )
    assert "0.05 an hour" in render(make_plan(inputs))
    assert interruptions(setting("cpu")) == []


def test_rows_that_no_step_reads_are_remarked() -> None:
    # 20 steps of 8 sequences of the 640 that are captured.
    (found,) = [r for r in remarks(setting("H100")) if r.kind == "unread"]
    assert "reads 25.0% of the cache" in found.text
    assert found.changes == ("cache.sequences=160",)
    assert "unread" not in kinds(cache__sequences=160)
    assert "unread" not in kinds(distill__training__steps=80)
    assert "--set cache.sequences=160" in render(make_plan(setting("H100")))


def test_a_student_larger_than_its_teacher_is_remarked() -> None:
    large = {"model": {"architecture": "llama", "options": {**LLAMA, "num_hidden_layers": 6}}}
    assert "student_size" in kinds(distill__student=large)
    assert "student_size" not in kinds()


@pytest.mark.parametrize(
    ("low", "high", "text"),
    [
        (0, 0, "0"),
        (0.0123, 0.0231, "0.012-0.023"),
        (1.04, 1.04, "1.0"),
        (6.96, 14.2, "7.0-14"),
        (52_400, 104_900, "52k-100k"),
        (700, 1400, "0.70k-1.4k"),
        (999.6e3, 1.4e6, "1.0M-1.4M"),
    ],
)
def test_a_range_has_two_digits(low: float, high: float, text: str) -> None:
    assert between(Range(low, high)) == text
