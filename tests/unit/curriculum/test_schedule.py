"""Schedules at every boundary."""

import pytest

from kdscale.config.curriculum import Schedule
from kdscale.curriculum.schedule import value_at

STEPS = 200


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        (Schedule(kind="constant", start=0.7), {0: 0.7, 199: 0.7}),
        (Schedule(kind="linear", start=1.0, end=0.0), {0: 1.0, 199: 0.0, 100: 1 - 100 / 199}),
        (
            Schedule(kind="linear", start=64, end=512, until=0.5),
            {0: 64, 50: 64 + 448 * 50 / 99.5, 99: 64 + 448 * 99 / 99.5, 100: 512, 199: 512},
        ),
        (Schedule(kind="cosine", start=0.0, end=1.0), {0: 0.0, 199: 1.0}),
        (
            Schedule(kind="cosine", start=0.0, end=1.0, until=100 / 199),
            {0: 0.0, 50: 0.5, 25: 0.5 - 0.5**1.5, 100: 1.0, 101: 1.0, 199: 1.0},
        ),
        (Schedule(kind="inverse", start=1.0, end=0.0), {0: 1.0, 1: 1 / 2, 2: 1 / 3, 199: 1 / 200}),
        (Schedule(kind="inverse", start=0.0, end=1.0), {0: 0.0, 1: 1 / 2, 3: 3 / 4}),
        (Schedule(kind="inverse", start=1.0, end=0.0, period=50), {49: 1.0, 50: 1 / 2, 100: 1 / 3}),
        (
            Schedule(kind="stages", values=(1, 1.33, 1.67, 2)),
            {0: 1, 49: 1, 50: 1.33, 99: 1.33, 100: 1.67, 149: 1.67, 150: 2, 199: 2},
        ),
        (
            Schedule(kind="stages", values=(0.7, 0.8, 0.9, 1), shares=(0.1, 0.2, 0.3, 0.4)),
            {0: 0.7, 19: 0.7, 20: 0.8, 59: 0.8, 60: 0.9, 119: 0.9, 120: 1, 199: 1},
        ),
        (Schedule(kind="stages", values=(5,)), {0: 5, 199: 5}),
    ],
)
def test_schedule_values(schedule: Schedule, expected: dict[int, float]) -> None:
    for step, value in expected.items():
        assert value_at(schedule, step, STEPS) == pytest.approx(value), step


def test_labels_and_teacher_share_one_whole() -> None:
    rising = Schedule(kind="inverse", start=0.0, end=1.0, period=10)
    falling = Schedule(kind="inverse", start=1.0, end=0.0, period=10)
    for step in range(STEPS):
        assert value_at(rising, step, STEPS) + value_at(falling, step, STEPS) == pytest.approx(1)


def test_a_training_of_one_step_has_the_start_value() -> None:
    assert value_at(Schedule(kind="linear", start=0.3, end=1.0), 0, 1) == 0.3
    assert value_at(Schedule(kind="linear", start=0.3, end=1.0, until=0.01), 0, 1) == 0.3


def test_more_stages_than_steps_end_with_the_last_that_has_a_step() -> None:
    stages = Schedule(kind="stages", values=(1, 2, 3, 4))
    assert [value_at(stages, step, 2) for step in range(2)] == [1, 3]
