"""Pacing, schedules and the sampler, at every boundary."""

import itertools

import numpy as np
import pytest

from kdscale.config.curriculum import CurriculumConfig, Schedule
from kdscale.curriculum.pacing import competence, warmup_steps
from kdscale.curriculum.sampler import CurriculumSampler, SeenRows
from kdscale.curriculum.schedule import value_at

STEPS = 200


def config(**fields: object) -> CurriculumConfig:
    return CurriculumConfig(**{"warmup_share": 0.5, "start_share": 0.1, **fields})


@pytest.mark.parametrize("pacing", ["linear", "root", "step"])
def test_pool_starts_at_its_share_and_is_whole_from_the_end_of_the_warmup(pacing: str) -> None:
    curve = [competence(config(pacing=pacing), step, STEPS) for step in range(STEPS)]
    assert warmup_steps(config(), STEPS) == 100
    assert curve[0] == pytest.approx(0.1)
    assert curve[99] < 1.0
    assert curve[100:] == [1.0] * 100
    assert all(a <= b for a, b in itertools.pairwise(curve))


def test_pacing_follows_its_formula() -> None:
    assert competence(config(pacing="linear"), 50, STEPS) == pytest.approx(0.1 + 0.9 * 0.5)
    # Platanios et al.: sqrt(c0^2 + (1 - c0^2) t / T).
    assert competence(config(pacing="root"), 50, STEPS) == pytest.approx((0.01 + 0.99 / 2) ** 0.5)
    thirds = config(pacing="step", pacing_steps=3)
    # 100 / 3: the stages begin at steps 34 and 67.
    for step, stage in ((0, 0), (33, 0), (34, 1), (66, 1), (67, 2), (99, 2)):
        assert competence(thirds, step, STEPS) == pytest.approx(0.1 + 0.9 * stage / 3), step


def test_no_warmup_is_uniform_from_the_first_step() -> None:
    assert competence(config(warmup_share=0.0), 0, STEPS) == 1.0


def test_whole_training_as_warmup_never_reaches_all_but_ends() -> None:
    assert competence(config(warmup_share=1.0, pacing="linear"), STEPS - 1, STEPS) < 1.0
    assert competence(config(warmup_share=1.0), STEPS, STEPS) == 1.0


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        (Schedule(kind="constant", start=0.7), {0: 0.7, 199: 0.7}),
        (Schedule(kind="linear", start=1.0, end=0.0), {0: 1.0, 199: 0.0, 100: 1 - 100 / 199}),
        (Schedule(kind="cosine", start=0.0, end=1.0), {0: 0.0, 199: 1.0}),
        (Schedule(kind="inverse", start=1.0, end=0.0), {0: 1.0, 1: 1 / 2, 2: 1 / 3, 199: 1 / 200}),
        (Schedule(kind="inverse", start=0.0, end=1.0), {0: 0.0, 1: 1 / 2, 3: 3 / 4}),
        (Schedule(kind="inverse", start=1.0, end=0.0, period=50), {49: 1.0, 50: 1 / 2, 100: 1 / 3}),
    ],
)
def test_schedule_values(schedule: Schedule, expected: dict[int, float]) -> None:
    for step, value in expected.items():
        assert value_at(schedule, step, STEPS) == pytest.approx(value), step


def test_a_training_of_one_step_has_the_start_value() -> None:
    assert value_at(Schedule(kind="linear", start=0.3, end=1.0), 0, 1) == 0.3


def sampler(order: str = "easy", rows: int = 1000, **fields: object) -> CurriculumSampler:
    difficulty = np.random.default_rng(0).permutation(rows).astype(np.float32)
    return CurriculumSampler(
        config(order=order, **fields), difficulty, batch_rows=16, steps=STEPS, seed=7
    )


def test_easy_order_draws_from_the_easiest_rows_and_hard_from_the_hardest() -> None:
    difficulty = np.random.default_rng(0).permutation(1000)
    easy, hard = sampler("easy"), sampler("hard")
    for step in range(100):
        pool = easy.pool_size(step)
        assert difficulty[easy.batch(step)].max() < pool
        assert difficulty[hard.batch(step)].min() >= 1000 - pool


def test_random_order_keeps_the_pacing_and_ignores_the_difficulty() -> None:
    drawn = np.unique(np.concatenate([sampler("random").batch(step) for step in range(5)]))
    assert len(drawn) <= sampler().pool_size(4)
    difficulty = np.random.default_rng(0).permutation(1000)
    assert 350 < difficulty[drawn].mean() < 650


def test_batches_are_distinct_rows_and_a_function_of_the_step() -> None:
    first, again = sampler(), sampler()
    for step in (0, 1, 99, 100, 101, 199):
        assert len(np.unique(first.batch(step))) == 16
    later = [again.batch(step) for step in range(150, 200)]
    assert all(np.array_equal(first.batch(150 + i), rows) for i, rows in enumerate(later))
    assert not np.array_equal(first.batch(0), first.batch(1))


def test_after_the_warmup_every_epoch_meets_every_row_once() -> None:
    uniform = sampler(rows=100, warmup_share=0.0)
    # 25 batches of 16 are 4 epochs of 100 rows.
    met = np.concatenate([uniform.batch(step) for step in range(25)])
    for epoch in range(4):
        assert sorted(met[epoch * 100 : (epoch + 1) * 100]) == list(range(100))
    assert not np.array_equal(met[:100], met[100:200])


def test_many_rows_are_shuffled_within_windows_of_blocks() -> None:
    rows, difficulty = 1000, np.zeros(1000)
    windowed = CurriculumSampler(
        config(warmup_share=0.0, shuffle_rows=64),
        difficulty,
        batch_rows=16,
        steps=STEPS,
        seed=7,
        rows_per_block=8,
    )
    met = np.concatenate([windowed.batch(step) for step in range(125)])
    for epoch in (met[:rows], met[rows:]):
        assert sorted(epoch) == list(range(rows))
        # A window of 64 rows is 8 blocks, from all over the cache and in no order.
        blocks = np.unique(epoch[:64] // 8)
        assert len(blocks) == 8
        assert blocks.max() - blocks.min() > 40
        assert not np.array_equal(np.sort(epoch[:64]), epoch[:64])


def test_a_pool_smaller_than_a_batch_is_raised_to_it() -> None:
    tiny = sampler(rows=20)
    assert tiny.pool_size(0) == 16
    assert sorted(np.unique(tiny.batch(0))) == sorted(tiny.batch(0))


def test_seen_rows_count_the_same_after_a_resume() -> None:
    one, other = SeenRows(sampler(), 1000), SeenRows(sampler(), 1000)
    for step in range(120):
        last = one.metrics(step)
    assert other.metrics(119) == last
    assert last["curriculum/repeats"] == pytest.approx(
        120 * 16 / (last["curriculum/unique_seen_share"] * 1000)
    )
