"""Time of what an evaluation does on one rank alone, computed again by hand."""

import pytest

from kdscale.plan.evaluation import alone_seconds
from kdscale.plan.timing import evaluate_seconds
from tests.unit.plan.settings import setting

SPEED = {"turns": 10, "sequences": 4, "new_tokens": 6, "seconds": 1e30}


def test_turns_of_all_models_and_the_first_that_does_not_count() -> None:
    found = setting(evaluate={"speed": SPEED, "samples": None})
    teacher, student = (each.forward_flops(32) for each in (found.teacher, found.student))
    # So slow that no forward takes its layers' least; five turns of singles, each five forwards.
    batches = 11 * 4 * 32 * (teacher + 2 * student)
    singles = 6 * (5 * 32 + 6) * (teacher + 2 * student)
    assert alone_seconds(found, 1.0) == pytest.approx(batches + singles)


def test_a_fast_devices_forward_takes_its_layers() -> None:
    found = setting(evaluate={"speed": SPEED, "samples": None})
    layers = found.teacher.layers + 2 * found.student.layers
    assert alone_seconds(found, 1e30) == pytest.approx((11 + 6 * (5 + 6)) * layers * 1.1e-3)


def test_no_turn_begins_after_its_time() -> None:
    found = setting(evaluate={"speed": SPEED | {"seconds": 2.0}, "samples": None})
    teacher, student = (each.forward_flops(32) for each in (found.teacher, found.student))
    once = (4 * 32 + 5 * 32 + 6) * (teacher + 2 * student)
    assert alone_seconds(found, 1.0) == pytest.approx(2 * once + 2.0)


def test_both_texts_of_each_beginning_are_written_at_once() -> None:
    found = setting(evaluate={"speed": None, "samples": {"prompts": 3, "new_tokens": 7}})
    flops = found.teacher.forward_flops(32) + 2 * found.student.forward_flops(32)
    assert alone_seconds(found, 1.0) == pytest.approx(2 * 7 * 3 * flops)


def test_nothing_is_measured_alone_where_it_is_not_wanted() -> None:
    found = setting(evaluate={"speed": None, "samples": None})
    assert alone_seconds(found, 1.0) == 0
    assert evaluate_seconds(found).alone == 0
    assert evaluate_seconds(setting()).alone > 0
