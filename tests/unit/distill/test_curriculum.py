"""Curricula on a worker: the student's gap before every stage, difficulties that need labels."""

from pathlib import Path

import numpy as np
import pytest
import torch

from kdscale.cache.read.reader import CacheReader
from kdscale.config.student import DistillConfig
from kdscale.curriculum.sampler import CurriculumSampler
from kdscale.distill.curriculum import difficulty, make_sampler, measure_gap, staged_steps
from kdscale.distributed.rank import Rank
from kdscale.errors import KdscaleError
from kdscale.models.head import ModelWithHead
from kdscale.store import Store, open_store
from tests.unit.cache.planted import VOCAB, Planted, make_planted
from tests.unit.distill.students import make_student

STEPS, BATCH = 8, 4
WORKER = Rank(0, 1, torch.device("cpu"))


@pytest.fixture
def planted(tmp_path: Path) -> Planted:
    return make_planted(open_store(str(tmp_path / "cache"))).publish()


def config(difficulty: str = "gap") -> DistillConfig:
    return DistillConfig.model_validate(
        {
            "student": {"teacher_layers": [0]},
            "training": {"steps": STEPS, "global_batch_size": BATCH, "micro_batch_size": 4},
            "curriculum": {
                "difficulty": difficulty,
                "pacing": "baby_step",
                "stages": 4,
                "warmup_share": 1.0,
            },
        }
    )


def rows_of(
    planted: Planted, tables: Store, students: dict[int, ModelWithHead], start: int = 0
) -> tuple[list[list[int]], CurriculumSampler]:
    """Return the rows of every step; `students` are those that are trained from a step on."""
    reader = CacheReader(planted.store)
    sampler = make_sampler(config(), reader, WORKER, VOCAB, seed=2)
    known = {row.tobytes(): index for index, row in enumerate(planted.rows.input_ids)}
    student = students[max(step for step in students if step <= start)]
    found = []
    steps = staged_steps(config(), WORKER, reader, sampler, tables, VOCAB, start, student)
    for number, step in enumerate(steps, start):
        ids = torch.cat([batch.rows.ids for batch in step.micro_batches]).numpy().astype(np.int32)
        found.append([known[row.tobytes()] for row in ids])
        if number + 1 in students:
            student.load_state_dict(students[number + 1].state_dict())
    return found, sampler


def test_every_stage_ranks_by_the_student_of_its_own_time(planted: Planted, tmp_path: Path) -> None:
    tables = open_store(str(tmp_path / "tables"))
    students = {0: make_student(0), 2: make_student(1), 4: make_student(2)}
    gaps = {
        step: measure_gap(student, CacheReader(planted.store), WORKER, 4)
        for step, student in students.items()
    }
    found, _ = rows_of(planted, tables, students)
    assert len(found) == STEPS
    for step, gap in gaps.items():
        pool = round((step // 2 + 1) / 4 * 23)
        easiest = set(np.argsort(gap)[:pool].tolist())
        assert set(found[step] + found[step + 1]) <= easiest
    stored = [np.load(tmp_path / "tables" / key) for key in tables.list()]
    assert len(stored) == 3
    for table, gap in zip(stored, gaps.values(), strict=True):
        assert np.array_equal(table, gap)


@pytest.mark.parametrize("start", [0, 1, 2, 5, 7])
def test_a_resumed_run_and_another_student_meet_the_same_rows(
    planted: Planted, tmp_path: Path, start: int
) -> None:
    tables = open_store(str(tmp_path / "tables"))
    found, _ = rows_of(planted, tables, {0: make_student(0), 3: make_student(1)})
    again, _ = rows_of(planted, tables, {0: make_student(5)}, start)
    assert again == found[start:]


def test_what_the_teacher_says_is_not_measured_again(planted: Planted, tmp_path: Path) -> None:
    tables, reader = open_store(str(tmp_path / "tables")), CacheReader(planted.store)
    entropy = config("entropy")
    sampler = make_sampler(entropy, reader, WORKER, VOCAB, seed=2)
    steps = staged_steps(entropy, WORKER, reader, sampler, tables, VOCAB, 3, torch.nn.Identity())
    assert len(list(steps)) == STEPS - 3
    assert tables.list() == []


@pytest.mark.parametrize("name", ["nll", "gap", "entropy"])
def test_rows_without_labels_cannot_be_ranked_by_them(tmp_path: Path, name: str) -> None:
    planted = make_planted(open_store(str(tmp_path)), labelled=True)
    planted.stats.nll[[3, 4]] = np.nan
    reader = CacheReader(planted.publish().store)
    if name == "entropy":
        found = difficulty(config(name).curriculum, reader, WORKER, VOCAB)
        assert np.array_equal(found, planted.stats.entropy)
        return
    with pytest.raises(KdscaleError, match="2 of 23 cached sequences have no label"):
        make_sampler(config(name), reader, WORKER, VOCAB, seed=2)
