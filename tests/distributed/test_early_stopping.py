"""Early stopping on two real gloo ranks: one decision, the one that a single rank takes."""

from pathlib import Path

import pytest

from kdscale.store import Store
from kdscale.teacher.train import TeacherJob
from kdscale.train.job import TrainingJob
from tests.ranks import run_ranks
from tests.unit.train.overfitting import (
    best_of,
    lines,
    make_prepared,
    run,
    session,
    validation_loss,
)


def train_all(jobs: list[TeacherJob]) -> None:
    """One training after the other: starting processes is the slow part."""
    for job in jobs:
        job.run()


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return make_prepared(tmp_path_factory.mktemp("prepared"))


@pytest.fixture(scope="module")
def sessions(prepared: Store, tmp_path_factory: pytest.TempPathFactory) -> dict[int, TrainingJob]:
    """Finished trainings by two ranks, by ZeRO stage."""
    folder = tmp_path_factory.mktemp("sessions")
    made = {s: session(folder / f"{s}", zero={"stage": s}) for s in (0, 1, 2, 3)}
    jobs = [TeacherJob(each, prepared) for each in made.values()]
    run_ranks(train_all, 2, jobs)
    return made


@pytest.mark.dist
@pytest.mark.parametrize("stage", [0, 1, 2])
def test_two_ranks_end_at_the_same_step_as_one_and_publish_the_same_model(
    sessions: dict[int, TrainingJob], prepared: Store, tmp_path: Path, stage: int
) -> None:
    alone, together = session(tmp_path), sessions[stage]
    expected, found = run(alone, prepared), lines(together)
    assert sorted(found) == sorted(expected)
    assert best_of(found) == best_of(expected)
    assert validation_loss(together, prepared) == pytest.approx(
        validation_loss(alone, prepared), rel=1e-3
    )


@pytest.mark.dist
@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_every_stage_goes_back_to_its_best_step(
    sessions: dict[int, TrainingJob], prepared: Store, stage: int
) -> None:
    """Its state is put into an optimiser and shards that have gone further."""
    found = lines(sessions[stage])
    best = best_of(found)
    assert best < max(found)
    assert validation_loss(sessions[stage], prepared) == pytest.approx(
        found[best]["validation/loss"], rel=1e-5
    )
