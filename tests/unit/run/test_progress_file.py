"""The progress file while a run is at work, when it ends, and when it is killed."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from kdscale.errors import KdscaleError
from kdscale.run.progress_file import PROGRESS_KEY, ProgressFile, ProgressRecord, read_progress
from kdscale.run.stop import StoppedError
from kdscale.store import Store, open_store
from kdscale.store.local import LocalStore
from kdscale.workers.progress import RunningStage

SOON = 20.0  # seconds


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return open_store(str(tmp_path / "run"))


def wait_for(store: Store, ready: Callable[[ProgressRecord], bool]) -> ProgressRecord:
    deadline = time.monotonic() + SOON
    while True:
        found = read_progress(store)
        if found is not None and ready(found):
            return found
        assert time.monotonic() < deadline, found
        time.sleep(0.01)


def last(store: Store) -> ProgressRecord:
    found = read_progress(store)
    assert found is not None
    return found


def done(found: ProgressRecord, stage: str) -> int | None:
    return found.stages[stage].done if stage in found.stages else None


def reported(progress: RunningStage, done: int, note: str = "rows") -> None:
    progress.update(done, 100, note)
    progress.drain()


def test_it_beats_while_the_run_is_at_work(store: Store) -> None:
    progress = RunningStage("cache")
    with ProgressFile(store, seconds=0.02) as file:
        first = wait_for(store, lambda found: True)
        assert (first.drivers[-1].pid, first.drivers[-1].state) == (os.getpid(), "running")
        file.begin(progress, "f1")
        reported(progress, 40)
        found = wait_for(store, lambda found: done(found, "cache") == 40)
        assert found.drivers[-1].stage == "cache"
        assert found.drivers[-1].heard > first.drivers[-1].heard
    assert last(store).drivers[-1].state == "complete"


def test_the_progress_of_a_stage_is_kept_when_the_next_begins(store: Store) -> None:
    with ProgressFile(store, seconds=60) as file:
        for name in ("cache", "distill"):
            progress = RunningStage(name)
            file.begin(progress, name)
            reported(progress, 100)
    assert {name: stage.done for name, stage in last(store).stages.items()} == {
        "cache": 100,
        "distill": 100,
    }


def test_the_cause_of_a_failure_has_no_secrets(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hidden-key")
    with pytest.raises(KdscaleError), ProgressFile(store):
        raise KdscaleError("No hidden-key fits.\nMore of it.", "Another.")
    assert last(store).drivers[-1].cause == "No *** fits."
    with pytest.raises(RuntimeError), ProgressFile(store):
        raise RuntimeError("boom")
    states = [(driver.state, driver.cause) for driver in last(store).drivers]
    assert states == [("failed", "No *** fits."), ("failed", "RuntimeError: boom")]


def test_a_run_that_was_asked_to_stop_has_not_failed(store: Store) -> None:
    with pytest.raises(StoppedError), ProgressFile(store):
        raise StoppedError("Stopped as asked.")
    with pytest.raises(KeyboardInterrupt), ProgressFile(store):
        raise KeyboardInterrupt
    ends = [(driver.state, driver.cause) for driver in last(store).drivers]
    assert ends == [("stopped", "Stopped as asked."), ("stopped", "KeyboardInterrupt")]


def test_a_second_attempt_never_goes_back_to_nothing(store: Store) -> None:
    progress = RunningStage("cache")
    with ProgressFile(store) as file:
        file.begin(progress, "f1")
        progress.update(40, 100)
        progress.channel.close_group("rank 1 failed: gone")
        progress.drain()
    with ProgressFile(store, seconds=0.02) as file:
        file.begin(again := RunningStage("cache"), "f1")
        wait_for(store, lambda found: found.drivers[-1].stage == "cache")
        assert last(store).stages["cache"].done == 40
        again.update(60, 100)
        again.channel.close_group("rank 0 failed: gone too")
        again.drain()
        found = wait_for(store, lambda found: done(found, "cache") == 60)
        assert found.stages["cache"].failed_groups == 2
    reasons = [failure.reason for failure in last(store).stages["cache"].failures]
    assert reasons == ["rank 1 failed: gone", "rank 0 failed: gone too"]
    with ProgressFile(store) as file:
        file.begin(RunningStage("cache"), "another")
    assert (last(store).stages["cache"].done, last(store).stages["cache"].failures) == (0, ())


def test_a_killed_driver_is_lost_for_its_successor(store: Store) -> None:
    code = (
        "import sys, time; from kdscale.run.progress_file import ProgressFile; "
        "from kdscale.store import open_store\n"
        f"with ProgressFile(open_store({store.url!r}), seconds=0.02): time.sleep(600)"
    )
    process = subprocess.Popen([sys.executable, "-c", code])
    try:
        wait_for(store, lambda found: found.drivers[-1].pid == process.pid)
    finally:
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    assert last(store).drivers[-1].state == "running"
    with ProgressFile(store):
        pass
    assert [driver.state for driver in last(store).drivers] == ["lost", "complete"]


def test_a_store_that_fails_ends_no_run(
    store: Store, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(self: LocalStore, key: str, data: bytes) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(LocalStore, "put", refuse)
    with ProgressFile(store):
        pass
    assert "progress.json was not written: no space left" in caplog.text


def test_a_driver_that_lost_the_run_is_silent(store: Store) -> None:
    def check() -> None:
        if lost:
            raise KdscaleError("Another driver has it.", "Wait.")

    lost: list[int] = []
    with ProgressFile(store, seconds=0.02, check=check):
        wait_for(store, lambda found: True)
        lost.append(1)
    with ProgressFile(store):
        pass
    assert [driver.state for driver in last(store).drivers] == ["lost", "complete"]


def test_an_unreadable_file_is_written_anew(store: Store) -> None:
    store.put(PROGRESS_KEY, b"{}x")
    with pytest.raises(KdscaleError, match="not written by this version"):
        read_progress(store)
    with ProgressFile(store):
        pass
    assert len(last(store).drivers) == 1


def test_the_job_that_runs_it_is_named(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    config = {"metadata": {"job_submission_id": "quickstart-1"}}
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", json.dumps(config))
    with ProgressFile(store):
        pass
    assert last(store).drivers[-1].job == "quickstart-1"
