"""Pacing and stages at every boundary, against their formulas in exact fractions."""

import itertools
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kdscale.config.curriculum import CurriculumConfig
from kdscale.curriculum.pacing import (
    competence,
    pool_since,
    table_steps,
    uniform_from,
    warmup_stages,
    warmup_steps,
)
from kdscale.curriculum.schedule import stage_of, stage_starts

STEPS = 200
PACINGS = ("linear", "root", "geometric", "step", "baby_step")


def config(**fields: object) -> CurriculumConfig:
    return CurriculumConfig(**{"warmup_share": 0.5, "start_share": 0.1, **fields})


def naive_starts(shares: list[Fraction], steps: int) -> list[int]:
    """Return the first step that lies in each stage, found by walking over all steps."""
    ends = list(itertools.accumulate(shares))
    starts = []
    for begin in [Fraction(0), *ends[:-1]]:
        starts.append(next(step for step in range(steps + 1) if Fraction(step) >= begin * steps))
    return starts


@settings(deadline=None)
@given(stages=st.integers(1, 12), steps=st.integers(0, 300))
def test_equal_stages_begin_where_their_predecessors_end(stages: int, steps: int) -> None:
    shares = [Fraction(1, stages)] * stages
    assert stage_starts(stages, steps) == naive_starts(shares, steps)


@settings(deadline=None)
@given(parts=st.lists(st.integers(1, 9), min_size=1, max_size=6), steps=st.integers(0, 300))
def test_shares_of_the_run_are_exact_in_spite_of_floats(parts: list[int], steps: int) -> None:
    whole = sum(parts)
    shares = [Fraction(part, whole) for part in parts]
    assert stage_starts([part / whole for part in parts], steps) == naive_starts(shares, steps)


def test_stages_by_hand() -> None:
    # 0.1 + 0.2 is above 0.3 in floating point: the third stage must still begin at step 30.
    assert stage_starts([0.1, 0.2, 0.3, 0.4], 100) == [0, 10, 30, 60]
    assert stage_starts(3, 100) == [0, 34, 67]
    assert stage_starts(1, 100) == [0]
    assert stage_starts(3, 0) == [0, 0, 0]
    assert [stage_of([0, 34, 67], step) for step in (0, 33, 34, 66, 67, 10**6)] == [
        *(0, 0, 1, 1, 2, 2)
    ]
    assert stage_of([0, 0, 0], 0) == 2


@pytest.mark.parametrize("pacing", ["linear", "root", "geometric", "step"])
def test_pool_starts_at_its_share_and_is_whole_from_the_end_of_the_warmup(pacing: str) -> None:
    curve = [competence(config(pacing=pacing), step, STEPS) for step in range(STEPS)]
    assert warmup_steps(config(), STEPS) == 100
    assert uniform_from(config(pacing=pacing), STEPS) == 100
    assert curve[0] == pytest.approx(0.1)
    assert curve[99] < 1.0
    assert curve[100:] == [1.0] * 100


def test_baby_steps_are_equal_buckets_and_the_last_has_all_rows() -> None:
    quarters = config(pacing="baby_step", stages=4)
    curve = [competence(quarters, step, STEPS) for step in range(STEPS)]
    assert curve == [0.25] * 25 + [0.5] * 25 + [0.75] * 25 + [1.0] * 125
    assert uniform_from(quarters, STEPS) == 75
    # POCL: eight epochs over each of 25, 50, 75 and 100 % of the rows.
    pocl = config(pacing="baby_step", stages=(0.1, 0.2, 0.3, 0.4), warmup_share=1.0)
    assert [competence(pocl, step, 100) for step in (0, 9, 10, 29, 30, 59, 60, 99)] == [
        *(0.25, 0.25, 0.5, 0.5, 0.75, 0.75, 1.0, 1.0)
    ]
    assert uniform_from(pocl, 100) == 60
    assert uniform_from(config(pacing="baby_step", stages=1), STEPS) == 0


def test_pacing_follows_its_formula() -> None:
    for step in (0, 1, 50, 99):
        s = step / 100
        found = {
            pacing: competence(config(pacing=pacing), step, STEPS)
            for pacing in ("linear", "root", "geometric")
        }
        assert found["linear"] == pytest.approx(0.1 + 0.9 * s)
        # Platanios et al.: sqrt(c0^2 + (1 - c0^2) t / T).
        assert found["root"] == pytest.approx((0.01 + 0.99 * s) ** 0.5)
        # The logarithm of the share grows linearly from -1 to 0.
        assert found["geometric"] == pytest.approx(10 ** (s - 1))
        cubic = competence(config(pacing="root", root=3.0), step, STEPS)
        assert cubic**3 == pytest.approx(0.001 + 0.999 * s)
    thirds = config(pacing="step", stages=3)
    # 100 / 3: the stages begin at steps 34 and 67.
    for step, stage in ((0, 0), (33, 0), (34, 1), (66, 1), (67, 2), (99, 2)):
        assert competence(thirds, step, STEPS) == pytest.approx(0.1 + 0.9 * stage / 3), step
    uneven = config(pacing="step", stages=(0.5, 0.25, 0.25))
    for step, stage in ((0, 0), (49, 0), (50, 1), (74, 1), (75, 2), (99, 2)):
        assert competence(uneven, step, STEPS) == pytest.approx(0.1 + 0.9 * stage / 3), step


def test_root_one_is_linear() -> None:
    for step in range(0, STEPS, 7):
        root = competence(config(pacing="root", root=1.0), step, STEPS)
        assert root == pytest.approx(competence(config(pacing="linear"), step, STEPS))


@settings(max_examples=60, deadline=None)
@given(
    pacing=st.sampled_from(PACINGS),
    start=st.floats(0.01, 1),
    warmup=st.floats(0, 1),
    stages=st.one_of(st.integers(1, 9), st.just((0.1, 0.2, 0.3, 0.4))),
    steps=st.integers(1, 60),
)
def test_the_pool_only_grows_and_ends_whole(
    pacing: str, start: float, warmup: float, stages: int | tuple[float, ...], steps: int
) -> None:
    made = CurriculumConfig(pacing=pacing, start_share=start, warmup_share=warmup, stages=stages)
    curve = [competence(made, step, steps) for step in range(steps + 1)]
    assert all(a <= b + 1e-12 for a, b in itertools.pairwise(curve))
    assert all(0 < share <= 1 + 1e-12 for share in curve)
    assert curve[-1] == 1.0
    assert uniform_from(made, steps) <= warmup_steps(made, steps)


@pytest.mark.parametrize("pacing", PACINGS)
def test_no_warmup_is_uniform_from_the_first_step(pacing: str) -> None:
    assert competence(config(pacing=pacing, warmup_share=0.0), 0, STEPS) == 1.0
    assert uniform_from(config(pacing=pacing, warmup_share=0.0), STEPS) == 0


def test_whole_training_as_warmup_never_reaches_all_but_ends() -> None:
    assert competence(config(warmup_share=1.0, pacing="linear"), STEPS - 1, STEPS) < 1.0
    assert competence(config(warmup_share=1.0), STEPS, STEPS) == 1.0


def test_a_pool_belongs_to_a_stage_or_to_a_step() -> None:
    for pacing in ("linear", "root", "geometric"):
        assert pool_since(config(pacing=pacing), 57, STEPS) == 57
    for pacing in ("step", "baby_step"):
        made = config(pacing=pacing, stages=3)
        assert [pool_since(made, step, STEPS) for step in (0, 33, 34, 66)] == [0, 0, 34, 34]


def test_the_gap_is_measured_at_the_stage_edges_at_which_rows_are_sorted() -> None:
    assert table_steps(config(), STEPS) == [0]
    assert table_steps(config(difficulty="rarity", pacing="step"), STEPS) == [0]
    assert table_steps(config(difficulty="gap", stages=4), STEPS) == [0, 25, 50, 75]
    assert table_steps(config(difficulty="gap", stages=4, pacing="step"), STEPS) == [0, 25, 50, 75]
    # The last baby step has all rows and no order among them.
    baby = config(difficulty="gap", stages=4, pacing="baby_step")
    assert warmup_stages(baby, STEPS) == [0, 25, 50, 75]
    assert table_steps(baby, STEPS) == [0, 25, 50]
    fused = config(difficulty={"kind": "fusion", "of": ["nll", "gap"]}, stages=(0.5, 0.5))
    assert table_steps(fused, STEPS) == [0, 50]
    assert table_steps(config(difficulty="gap", warmup_share=0.0), STEPS) == [0]
    # Stages shorter than a step are measured once.
    assert table_steps(config(difficulty="gap", stages=9, warmup_share=1.0), 3) == [0, 1, 2]
