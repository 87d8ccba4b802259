"""Learning rates at every boundary of every schedule."""

import itertools
import math
from typing import Any

import pytest
from pydantic import ValidationError

from kdscale.config.training import OptimiserConfig
from kdscale.train.learning_rate import learning_rate


def rates(steps: int, **fields: Any) -> list[float]:
    config = OptimiserConfig(learning_rate=2.0, **fields)
    return [learning_rate(config, step, steps) for step in range(steps)]


@pytest.mark.parametrize("schedule", ["cosine", "linear", "wsd", "constant"])
def test_warmup_rises_to_the_peak(schedule: str) -> None:
    found = rates(100, schedule=schedule, warmup_share=0.1)
    assert found[:10] == pytest.approx([0.2 * n for n in range(1, 11)])
    assert found[10] == 2.0
    assert max(found) == 2.0


@pytest.mark.parametrize("schedule", ["cosine", "linear", "wsd"])
@pytest.mark.parametrize("final", [0.0, 0.2, 1.0])
def test_the_last_step_has_the_final_value_and_none_rises_again(
    schedule: str, final: float
) -> None:
    found = rates(100, schedule=schedule, warmup_share=0.1, final_learning_rate_share=final)
    assert found[99] == pytest.approx(2.0 * final, abs=1e-12)
    assert all(a >= b for a, b in itertools.pairwise(found[10:]))


def test_constant_stays_at_the_peak_to_the_end() -> None:
    assert rates(50, schedule="constant", warmup_share=0.0) == [2.0] * 50


def test_linear_and_cosine_in_their_middle() -> None:
    # Steps 10 to 110: the middle is 60.
    fields: dict[str, Any] = {"warmup_share": 10 / 111, "final_learning_rate_share": 0.2}
    for schedule in ("linear", "cosine"):
        assert rates(111, schedule=schedule, **fields)[60] == pytest.approx(2 * 0.6)
    assert rates(111, schedule="linear", **fields)[35] == pytest.approx(2 * 0.8)
    quarter = 0.2 + 0.8 * 0.5 * (1 + math.cos(math.pi / 4))
    assert rates(111, schedule="cosine", **fields)[35] == pytest.approx(2 * quarter)


@pytest.mark.parametrize(("shape", "half"), [("linear", 0.5), ("1-sqrt", 1 - math.sqrt(0.5))])
def test_wsd_is_stable_until_its_decay(shape: str, half: float) -> None:
    found = rates(
        100,
        schedule="wsd",
        warmup_share=0.1,
        decay_share=0.2,
        decay_shape=shape,
        final_learning_rate_share=0.1,
    )
    assert found[10:80] == [2.0] * 70
    assert found[80] < 2.0
    assert found[89] == pytest.approx(2 * (0.1 + 0.9 * half))
    assert found[99] == pytest.approx(0.2)


def test_wsd_that_decays_over_one_step_or_over_all() -> None:
    one = rates(10, schedule="wsd", warmup_share=0.0, decay_share=0.01)
    assert one == pytest.approx([2.0] * 9 + [0.2])
    line = rates(4, schedule="wsd", warmup_share=0.0, decay_share=1.0, decay_shape="linear")
    assert line == pytest.approx([2 * (0.1 + 0.9 * x) for x in (0.75, 0.5, 0.25, 0.0)])


def test_a_run_of_one_step() -> None:
    for schedule in ("cosine", "linear", "constant"):
        assert rates(1, schedule=schedule, warmup_share=0.0) == [2.0]
        assert rates(1, schedule=schedule, warmup_share=0.9) == [2.0]


def test_a_decay_that_would_begin_in_the_warmup_is_refused() -> None:
    with pytest.raises(ValidationError, match=r"warmup_share 0\.5 and decay_share 0\.6"):
        OptimiserConfig(schedule="wsd", warmup_share=0.5, decay_share=0.6)
    OptimiserConfig(schedule="cosine", warmup_share=0.5, decay_share=0.6)
