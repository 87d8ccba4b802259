"""What a step's rows are: the sampler's, shared out over ranks, cut where the schedule says so."""

from pathlib import Path

import numpy as np
import pytest
import torch

from kdscale.cache.read.reader import CacheReader
from kdscale.config.student import DistillConfig
from kdscale.curriculum.sampler import CurriculumSampler
from kdscale.distill.batches import MicroBatch
from kdscale.distill.steps import read_steps
from kdscale.distributed.rank import Rank
from kdscale.store import open_store
from kdscale.train.loop import Step
from tests.unit.cache.planted import ROW_LENGTH, Planted, make_planted

STEPS, BATCH = 6, 7


@pytest.fixture
def planted(tmp_path: Path) -> Planted:
    return make_planted(open_store(str(tmp_path))).publish()


def config(**curriculum: object) -> DistillConfig:
    return DistillConfig.model_validate(
        {
            "student": {"teacher_layers": [0]},
            "training": {"steps": STEPS, "global_batch_size": BATCH, "micro_batch_size": 2},
            "curriculum": {"warmup_share": 0, **curriculum},
        }
    )


def steps_of(
    planted: Planted, distill: DistillConfig, rank: int = 0, world: int = 1, start: int = 0
) -> list[Step[MicroBatch]]:
    reader = CacheReader(planted.store)
    sampler = CurriculumSampler(
        distill.curriculum, len(reader), global_batch_size=BATCH, steps=STEPS, seed=1
    )
    sampler.set_difficulty(0, reader.statistics.entropy)
    worker = Rank(rank, world, torch.device("cpu"))
    return list(read_steps(distill, worker, reader, sampler, range(start, STEPS)))


def targets(steps: list[Step[MicroBatch]]) -> list[list[tuple[int, ...]]]:
    """Of every step the tokens of each row that has targets, sorted."""
    return [
        sorted(
            tuple(row.tolist())
            for batch in step.micro_batches
            for row, mask in zip(batch.rows.ids, batch.rows.mask, strict=True)
            if mask.any()
        )
        for step in steps
    ]


def test_ranks_share_the_rows_of_one_and_a_resumed_run_goes_on(planted: Planted) -> None:
    alone = steps_of(planted, config())
    assert [len(rows) for rows in targets(alone)] == [BATCH] * STEPS
    halves = [steps_of(planted, config(), rank, 2) for rank in range(2)]
    both = [sorted(a + b) for a, b in zip(*map(targets, halves), strict=True)]
    assert both == targets(alone)
    for step, (one, other) in zip(alone, zip(*halves, strict=True), strict=True):
        assert len(one.micro_batches) == len(other.micro_batches)
        assert one.targets + other.targets == step.targets
    assert targets(steps_of(planted, config(), start=4)) == targets(alone)[4:]


def test_rows_carry_what_the_cache_has_of_them(planted: Planted) -> None:
    known = {tuple(row.tolist()): index for index, row in enumerate(planted.rows.input_ids)}
    for step in steps_of(planted, config()):
        for batch in step.micro_batches:
            assert batch.entropy is not None
            for row in range(len(batch.rows.ids)):
                index = known[tuple(batch.rows.ids[row].tolist())]
                assert np.array_equal(batch.payload[row].numpy(), planted.payload[index])
                assert float(batch.entropy[row]) == planted.stats.entropy[index]
                if batch.rows.mask[row].any():
                    assert np.array_equal(
                        batch.rows.mask[row].numpy(), planted.rows.loss_mask[index]
                    )


def test_rows_are_cut_as_the_schedule_says(planted: Planted) -> None:
    positions = {"kind": "linear", "start": 4, "end": ROW_LENGTH, "until": 0.5}
    found = steps_of(planted, config(length={"positions": positions, "multiple": 4}))
    lengths = [step.micro_batches[0].rows.ids.shape[1] for step in found]
    assert lengths[0] == 4
    assert lengths == sorted(lengths)
    assert lengths[-3:] == [ROW_LENGTH] * 3
    for step, whole in zip(found, steps_of(planted, config()), strict=True):
        assert step.targets == sum(int(batch.rows.mask.sum()) for batch in step.micro_batches)
        for short, long in zip(step.micro_batches, whole.micro_batches, strict=True):
            length = short.rows.ids.shape[1]
            assert torch.equal(short.rows.ids, long.rows.ids[:, :length])
            assert torch.equal(short.payload, long.payload[:, :length])
            assert torch.equal(short.rows.mask[:, :-1], long.rows.mask[:, : length - 1])
            # The last position speaks of a token that is cut off.
            assert not short.rows.mask[:, -1].any()
            assert (short.entropy is None) == (length < ROW_LENGTH)


def test_a_batch_is_drawn_once_a_step(planted: Planted, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[int] = []
    rows_at = CurriculumSampler.rows_at

    def counted(sampler: CurriculumSampler, positions: np.ndarray) -> np.ndarray:
        drawn.extend(positions)
        return rows_at(sampler, positions)

    monkeypatch.setattr(CurriculumSampler, "rows_at", counted)
    assert all(len(step.indices) == BATCH for step in steps_of(planted, config()))
    assert drawn == list(range(STEPS * BATCH))
