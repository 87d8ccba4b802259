"""The sampler: what its batches are made of, on any number of ranks and after a resume."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kdscale.config.curriculum import CurriculumConfig
from kdscale.curriculum.pacing import uniform_from
from kdscale.curriculum.sampler import CurriculumSampler, SeenRows
from kdscale.train.batches import split_micro_batches

STEPS, BATCH = 200, 16
DIFFICULTY = np.random.default_rng(0).permutation(1000).astype(np.float32)


def sampler(
    table: np.ndarray = DIFFICULTY, *, seed: int = 7, steps: int = STEPS, **fields: object
) -> CurriculumSampler:
    config = CurriculumConfig(**{"warmup_share": 0.5, "start_share": 0.1, **fields})
    return ranked(config, table, steps=steps, seed=seed)


def ranked(
    config: CurriculumConfig,
    table: np.ndarray,
    *,
    batch: int = BATCH,
    steps: int = STEPS,
    seed: int = 7,
    sequences_per_chunk: int = 1,
) -> CurriculumSampler:
    made = CurriculumSampler(
        config,
        len(table),
        global_batch_size=batch,
        steps=steps,
        seed=seed,
        sequences_per_chunk=sequences_per_chunk,
    )
    made.set_difficulty(0, table)
    return made


def met(made: CurriculumSampler, steps: range) -> np.ndarray:
    return np.concatenate([made.batch(step) for step in steps])


@pytest.mark.parametrize("pacing", ["linear", "root", "geometric", "step", "baby_step"])
def test_easy_order_draws_from_the_easiest_rows_and_hard_from_the_hardest(pacing: str) -> None:
    easy, hard = sampler(pacing=pacing), sampler(pacing=pacing, order="hard")
    for step in range(uniform_from(CurriculumConfig(pacing=pacing, warmup_share=0.5), STEPS)):
        pool = easy.pool_size(step)
        assert DIFFICULTY[easy.batch(step)].max() < pool
        assert DIFFICULTY[hard.batch(step)].min() >= 1000 - pool


def test_random_order_keeps_the_pacing_and_ignores_the_difficulty() -> None:
    drawn = np.unique(met(sampler(order="random"), range(5)))
    assert len(drawn) <= sampler().pool_size(4)
    assert 350 < DIFFICULTY[drawn].mean() < 650
    other = sampler(DIFFICULTY[::-1], order="random")
    assert np.array_equal(met(other, range(5)), met(sampler(order="random"), range(5)))
    # Another seed has its own rows first.
    another = np.unique(met(sampler(order="random", seed=8), range(5)))
    assert len(np.intersect1d(drawn, another)) < 12


@pytest.mark.parametrize("pacing", ["root", "baby_step"])
def test_batches_are_distinct_rows_and_a_function_of_seed_and_step(pacing: str) -> None:
    first, again = sampler(pacing=pacing), sampler(pacing=pacing)
    for step in (0, 1, 99, 100, 101, 199):
        assert len(np.unique(first.batch(step))) == BATCH
    # Asked backwards: nothing is carried from one step to the next.
    later = {step: again.batch(step) for step in reversed(range(STEPS))}
    assert all(np.array_equal(first.batch(step), later[step]) for step in range(STEPS))
    assert not np.array_equal(first.batch(0), first.batch(1))
    assert not np.array_equal(first.batch(0), sampler(pacing=pacing, seed=8).batch(0))


def test_steps_that_share_a_pool_draw_from_it_anew() -> None:
    small = sampler(DIFFICULTY[:100], pacing="linear", start_share=0.8)
    assert small.pool_size(10) == small.pool_size(11) == 82
    assert set(small.batch(10)) != set(small.batch(11))
    # 16 of 82 rows, ten times: 72 distinct ones are to be expected.
    assert 60 < len(np.unique(met(small, range(10, 20)))) < 82


def test_rows_of_equal_difficulty_come_from_everywhere() -> None:
    tied = sampler(np.zeros(1000))
    drawn = np.unique(met(tied, range(3)))
    assert 350 < drawn.mean() < 650
    halves = np.repeat([0, 1], 500)
    for order, first in (("easy", range(500)), ("hard", range(500, 1000))):
        rows = met(sampler(halves, order=order, start_share=0.3), range(5))
        assert set(rows) <= set(first)
        assert 150 < (rows % 500).mean() < 350


def test_a_stage_meets_every_row_of_its_pool_in_each_epoch() -> None:
    # Pools of 320 and 640 rows are 20 and 40 batches; stages have 80 steps.
    baby = sampler(
        np.arange(960), pacing="baby_step", stages=(1 / 3, 1 / 3, 1 / 3), warmup_share=1, steps=240
    )
    for stage, epochs, rows in ((range(80), 4, 320), (range(80, 160), 2, 640)):
        for epoch in np.split(met(baby, stage), epochs):
            assert sorted(epoch) == list(range(rows))
    assert sorted(met(baby, range(160, 220))) == list(range(960))
    step = sampler(np.arange(1000), pacing="step", stages=2, start_share=0.16, warmup_share=0.5)
    assert sorted(met(step, range(10))) == list(range(160))
    assert not np.array_equal(met(step, range(10)), met(step, range(10, 20)))


def test_after_the_warmup_every_epoch_meets_every_row_once() -> None:
    uniform = sampler(DIFFICULTY[:100], warmup_share=0.0)
    # 25 batches of 16 are 4 epochs of 100 rows.
    rows = met(uniform, range(25))
    for epoch in np.split(rows, 4):
        assert sorted(epoch) == list(range(100))
    assert not np.array_equal(rows[:100], rows[100:200])


def test_many_rows_are_shuffled_within_windows_of_blocks() -> None:
    rows = 1000
    config = CurriculumConfig(warmup_share=0.0, shuffle_sequences=64)
    windowed = ranked(config, np.zeros(rows), sequences_per_chunk=8)
    for epoch in np.split(met(windowed, range(125)), 2):
        assert sorted(epoch) == list(range(rows))
        # A window of 64 rows is 8 blocks, from all over the cache and in no order.
        blocks = np.unique(epoch[:64] // 8)
        assert len(blocks) == 8
        assert blocks.max() - blocks.min() > 40
        assert not np.array_equal(np.sort(epoch[:64]), epoch[:64])


def test_a_pool_smaller_than_a_batch_is_raised_to_it() -> None:
    tiny = sampler(DIFFICULTY[:20])
    assert tiny.pool_size(0) == BATCH
    assert sorted(np.unique(tiny.batch(0))) == sorted(tiny.batch(0))


def test_fewer_rows_than_a_batch_are_met_again() -> None:
    few = sampler(DIFFICULTY[:5])
    for step in (0, 150):
        assert few.pool_size(step) == 5
        assert set(few.batch(step)) == set(range(5))
        assert len(few.batch(step)) == BATCH


@settings(max_examples=40, deadline=None)
@given(
    rows=st.integers(1, 80),
    batch=st.integers(1, 20),
    steps=st.integers(1, 40),
    seed=st.integers(0, 2**32 - 1),
    pacing=st.sampled_from(["linear", "root", "geometric", "step", "baby_step"]),
    order=st.sampled_from(["easy", "hard", "random"]),
    warmup=st.sampled_from([0.0, 0.3, 1.0]),
)
def test_pools_grow_and_batches_come_from_them(
    rows: int, batch: int, steps: int, seed: int, pacing: str, order: str, warmup: float
) -> None:
    config = CurriculumConfig(pacing=pacing, order=order, warmup_share=warmup, stages=4)
    # No two rows are equally hard, so that the order is known.
    hardness = np.random.default_rng(seed).permutation(rows)

    def make() -> CurriculumSampler:
        return ranked(config, hardness, batch=batch, steps=steps, seed=seed)

    made, twin, before = make(), make(), 0
    for step in range(steps):
        pool, drawn = made.pool_size(step), made.batch(step)
        assert before <= pool <= rows
        assert pool >= min(rows, batch)
        assert np.array_equal(drawn, twin.batch(step))
        if order == "easy":
            assert hardness[drawn].max() < pool
        if order == "hard":
            assert hardness[drawn].min() >= rows - pool
        before = pool
    # From the end of the warm-up, an epoch's batches meet every row.
    whole = uniform_from(config, steps)
    epoch = range(whole, whole + -(-rows // batch))
    assert set(met(made, epoch)) == set(range(rows))


@pytest.mark.parametrize("world", [1, 2, 3])
@pytest.mark.parametrize("pacing", ["root", "baby_step"])
def test_ranks_share_the_batch_of_one_rank(pacing: str, world: int) -> None:
    alone = sampler(pacing=pacing)
    for step in (0, 40, 99, 100, 199):
        shares = []
        for rank in range(world):
            own = sampler(pacing=pacing).batch(step)
            parts = split_micro_batches(own, 4, rank, world)
            shares.append(np.concatenate([rows[valid] for rows, valid in parts]))
        dealt = [shares[place % world][place // world] for place in range(BATCH)]
        assert np.array_equal(dealt, alone.batch(step))
        assert sum(map(len, shares)) == BATCH


def gap_tables() -> dict[int, np.ndarray]:
    generator = np.random.default_rng(3)
    return {step: generator.permutation(1000).astype(np.float64) for step in (0, 34, 67)}


def measured(tables: dict[int, np.ndarray]) -> CurriculumSampler:
    made = sampler(tables[0], difficulty="gap", stages=3, pacing="linear")
    for step in sorted(tables)[1:]:
        made.set_difficulty(step, tables[step])
    return made


def test_a_refreshed_gap_sorts_the_rows_from_its_stage_on() -> None:
    tables = gap_tables()
    made = measured(tables)
    for step in range(100):
        table = tables[max(due for due in tables if due <= step)]
        assert table[made.batch(step)].max() < made.pool_size(step), step
        mean = made.metrics(step, made.batch(step))["curriculum/mean_difficulty"]
        assert mean == pytest.approx(table[made.batch(step)].mean())
    assert made.metrics(150, made.batch(150))["curriculum/mean_difficulty"] == pytest.approx(
        tables[67][made.batch(150)].mean()
    )


def test_a_run_resumed_with_its_stored_tables_meets_the_same_rows() -> None:
    tables, stepwise = gap_tables(), sampler(gap_tables()[0], difficulty="gap", pacing="linear")
    whole = []
    for step in range(STEPS):
        if step in tables and step:
            stepwise.set_difficulty(step, tables[step])
        whole.append(stepwise.batch(step))
    resumed = measured(tables)
    assert np.array_equal(np.concatenate(whole[50:]), met(resumed, range(50, STEPS)))
    assert seen(resumed, 1000, 150) == seen(stepwise, 1000, 150)


def test_batches_of_a_stage_that_was_not_measured_are_refused() -> None:
    made = measured({step: table for step, table in gap_tables().items() if step < 67})
    assert len(made.batch(66)) == BATCH
    with pytest.raises(AssertionError, match="step 67 needs the difficulties of step 67"):
        made.batch(67)
    with pytest.raises(AssertionError):
        made.set_difficulty(35, DIFFICULTY)
    with pytest.raises(AssertionError):
        made.set_difficulty(67, DIFFICULTY[:999])


def seen(made: CurriculumSampler, rows: int, step: int) -> dict[str, float]:
    """As a run counts that was resumed just before `step`."""
    counter = SeenRows(made, rows)
    counter.add(step, made.batch(step))
    return counter.metrics()


def test_rows_that_were_seen_are_counted_as_if_one_by_one() -> None:
    made = sampler()
    counts = np.zeros(1000, dtype=int)
    counter = SeenRows(made, 1000)
    for step in range(0, 120, 7):
        counts[:] = 0
        for row in met(made, range(step + 1)):
            counts[row] += 1
        counter.add(step, made.batch(step))
        assert counter.metrics() == {
            "curriculum/unique_seen_share": (counts > 0).sum() / 1000,
            "curriculum/repeats": counts.sum() / (counts > 0).sum(),
        }


def test_seen_rows_count_the_same_after_a_resume() -> None:
    made = sampler()
    stepwise = SeenRows(made, 1000)
    for step in range(120):
        stepwise.add(step, made.batch(step))
    assert seen(sampler(), 1000, 119) == stepwise.metrics()


def test_a_row_twice_in_a_batch_is_one_row_seen() -> None:
    few = seen(sampler(DIFFICULTY[:5]), 5, 0)
    assert few == {"curriculum/unique_seen_share": 1.0, "curriculum/repeats": 16 / 5}


def test_what_is_logged_of_a_step() -> None:
    made = sampler(pacing="linear")
    assert made.metrics(50, made.batch(50)) == {
        "curriculum/competence": pytest.approx(0.55),
        "curriculum/pool_size": 550.0,
        "curriculum/mean_difficulty": pytest.approx(DIFFICULTY[made.batch(50)].mean()),
    }
