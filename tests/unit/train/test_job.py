"""A real training on one rank, over real rows: which step ends it, is published, and is resumed."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kdscale.data.rows.order import uniform_batch
from kdscale.store import Store
from kdscale.teacher import train as teacher_train
from kdscale.train.job import TrainingJob
from tests.unit.train.overfitting import (
    PATIENCE,
    best_of,
    make_prepared,
    run,
    session,
    validation_loss,
)


class Killed(BaseException):
    """Ends a training as a signal would: nothing that it does later is done."""


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return make_prepared(tmp_path_factory.mktemp("prepared"))


def checkpointed(session: TrainingJob) -> list[int]:
    """Return the steps of the complete checkpoints that are kept."""
    keys = session.checkpoints.list()
    return sorted(int(key.split("/")[0][5:]) for key in keys if key.endswith("complete.json"))


def die_at(step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the batch of `step` (from 0) never come."""

    def batch(position: int, rows: int, *rest: Any) -> np.ndarray:
        if position == step * rows:
            raise Killed
        return uniform_batch(position, rows, *rest)

    monkeypatch.setattr(teacher_train, "uniform_batch", batch)


@pytest.fixture(scope="module")
def undisturbed(
    prepared: Store, tmp_path_factory: pytest.TempPathFactory
) -> tuple[TrainingJob, dict[int, dict[str, float]]]:
    made = session(tmp_path_factory.mktemp("undisturbed"))
    return made, run(made, prepared)


def test_training_ends_when_validation_gains_no_more_and_the_best_step_is_published(
    undisturbed: tuple[TrainingJob, dict[int, dict[str, float]]], prepared: Store
) -> None:
    made, logged = undisturbed
    best, last = best_of(logged), max(logged)
    assert 2 < best < 50, "the data must make the model learn, then overfit"
    assert last == best + 2 * PATIENCE < 60
    assert validation_loss(made, prepared) == pytest.approx(
        logged[best]["validation/loss"], rel=1e-5
    )
    assert logged[last]["validation/loss"] > logged[best]["validation/loss"] + 1e-3
    assert made.checkpoints.list() == []


@pytest.mark.parametrize("after_best", [-1, 1, 7])
def test_a_killed_training_ends_and_publishes_as_the_undisturbed_one(
    undisturbed: tuple[TrainingJob, dict[int, dict[str, float]]],
    prepared: Store,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    after_best: int,
) -> None:
    whole, logged = undisturbed
    best = best_of(logged)
    made = session(tmp_path)
    with monkeypatch.context() as patch:
        die_at(best + after_best, patch)
        with pytest.raises(Killed):
            run(made, prepared)
    done = best + after_best
    expected = {step for step in range(1, done + 1) if step % 3 == 0}
    improved = [s for s in range(2, done + 1, 2) if best_of(up_to(logged, s)) == s]
    newest_two = sorted(expected | set(improved))[-2:]
    assert checkpointed(made) == sorted({*newest_two, improved[-1]})
    if after_best == 7:
        assert best not in newest_two

    found = run(made, prepared)
    assert sorted(found) == sorted(logged)
    for step, line in logged.items():
        for name in ("train/loss", "validation/loss", "lr", "tokens"):
            assert found[step].get(name) == line.get(name), (step, name)
    for name in ("model.safetensors", "config.json"):
        assert made.folder.get(name) == whole.folder.get(name), name


def up_to(logged: dict[int, dict[str, float]], step: int) -> dict[int, dict[str, float]]:
    return {s: line for s, line in logged.items() if s <= step}


def test_the_last_step_is_published_and_two_checkpoints_kept_by_default(
    undisturbed: tuple[TrainingJob, dict[int, dict[str, float]]],
    prepared: Store,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    steps = max(undisturbed[1])
    fields = {"steps": steps, "early_stopping": None, "keep": "last"}
    made = session(tmp_path, **fields)
    with monkeypatch.context() as patch:
        die_at(11, patch)
        with pytest.raises(Killed):
            run(made, prepared)
    assert checkpointed(made) == [6, 9]
    logged = run(made, prepared)
    assert max(logged) == steps
    assert validation_loss(made, prepared) == pytest.approx(
        logged[steps]["validation/loss"], rel=1e-5
    )
    assert (
        validation_loss(made, prepared) > undisturbed[1][best_of(undisturbed[1])]["validation/loss"]
    )


def test_what_is_logged_of_speed_and_memory(
    undisturbed: tuple[TrainingJob, dict[int, dict[str, float]]],
) -> None:
    for line in undisturbed[1].values():
        assert line["tokens_per_second"] > 0
        assert 0 <= line["data_wait_share"] < 1
        assert 0.05 < line["memory_gib"] < 100
        assert "mfu" not in line
