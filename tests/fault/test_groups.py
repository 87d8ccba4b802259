"""Worker groups on a real cluster of several nodes.

A node is lost, one is added, one is taken away with a notice, a worker hangs, the stage is asked to
stop. Each training ends as the undisturbed one does.
"""

import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
import torch
from ray.cluster_utils import Cluster

from kdscale.config.training import WorkersConfig
from kdscale.distributed.rank import GracefulStopError, current_rank
from kdscale.errors import KdscaleError
from kdscale.store import Store
from kdscale.teacher.train import TeacherJob
from kdscale.train.job import TrainingJob
from kdscale.workers.group import run_workers
from kdscale.workers.progress import RunningStage
from tests.fault.paced import PATIENCE_SECONDS, Pace, PacedJob
from tests.ranks import run_ranks
from tests.unit.train.overfitting import lines, make_prepared, session

pytestmark = [pytest.mark.fault, pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(1200)]

Lines = dict[int, dict[str, float]]
"""The log of a training, by step."""

STEPS = 30
TRAINING = {"steps": STEPS, "early_stopping": None, "keep": "last", "checkpoint_every": 8}


@pytest.fixture(scope="module", autouse=True)
def cluster() -> Iterator[Cluster]:
    """Start a head and two nodes, each with room for one worker."""
    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    patch = pytest.MonkeyPatch()
    patch.setenv("RAY_CHDIR_TO_TRIAL_DIR", "0")
    patch.setenv("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", "40")
    # Ray's own actors would look for a cluster by themselves, and find another one of this machine.
    patch.setenv("RAY_ADDRESS", made.address)
    for _ in range(2):
        made.add_node(num_cpus=1)
    made.wait_for_nodes()
    ray.init(address=made.address, logging_level="WARNING", log_to_driver=False)
    yield made
    ray.shutdown()
    made.shutdown()
    patch.undo()


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return make_prepared(tmp_path_factory.mktemp("prepared"))


class Running:
    """A paced training on the cluster, run by a thread of the test."""

    def __init__(self, folder: Path, prepared: Store, workers: WorkersConfig) -> None:
        self.session: TrainingJob = session(folder / "run", **TRAINING)
        self.pace = Pace(folder / "pace")
        self.pace.allow(0)
        self.stop = threading.Event()
        self.error: BaseException | None = None
        self._workers = workers
        self._job = PacedJob(self.session, prepared, self.pace)
        self._progress = RunningStage("teacher", self.stop.is_set)
        self._lines: list[str] = []
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            run_workers(self._job, self._workers, self._progress)
        except BaseException as error:
            self.error = error

    def log(self) -> str:
        """Return the lines of the workers."""
        self._lines += self._progress.drain()
        return "\n".join(self._lines)

    def until(self, ready: Callable[[], Any]) -> Any:
        """Wait until `ready()` is true, and return it."""
        deadline = time.monotonic() + PATIENCE_SECONDS
        while not (found := ready()):
            assert self._thread.is_alive(), f"it has ended: {self.error}\n{self.log()}"
            assert time.monotonic() < deadline, self.log()
            time.sleep(0.1)
        return found

    def come_to(self, step: int) -> None:
        """Let the training come to `step`, and no further."""
        self.pace.allow(step)
        self.until(lambda: step in self.logged())

    def logged(self) -> Lines:
        exists = self.session.output.exists("metrics/teacher.jsonl")
        return lines(self.session) if exists else {}

    def started_with(self, count: int) -> bool:
        """Return whether a group of `count` workers has begun to train."""
        pattern = rf"rank 0 of {count} .* parameters, (?:started|resumed)"
        return re.search(pattern, self.log()) is not None

    def go_slowly(self, first: int) -> None:
        """Let it do a step a second from `first` on, until it ends or is through."""
        for step in range(first, STEPS + 1):
            self.pace.allow(step)
            self._thread.join(1)
            if not self._thread.is_alive():
                return

    def end(self) -> None:
        """Let it run to its end."""
        self.pace.allow(STEPS)
        self._thread.join(PATIENCE_SECONDS)
        assert not self._thread.is_alive(), self.log()


@pytest.fixture(scope="module")
def undisturbed(prepared: Store, tmp_path_factory: pytest.TempPathFactory) -> Lines:
    """Return the log of two undisturbed ranks."""
    made = session(tmp_path_factory.mktemp("undisturbed"), **TRAINING)
    run_ranks(TeacherJob.run, 2, TeacherJob(made, prepared))
    return lines(made)


def assert_same_batches(run: Running, theirs: Lines) -> None:
    """Every step once, on the rows of the undisturbed run's."""
    mine = run.logged()
    assert sorted(mine) == sorted(theirs) == list(range(1, STEPS + 1))
    for step, line in theirs.items():
        assert mine[step]["train/batch_digest"] == line["train/batch_digest"], step


def assert_same_losses(run: Running, theirs: Lines, tolerance: float = 0.0) -> None:
    for name in ("train/loss", "validation/loss"):
        mine, expected = (
            {step: line[name] for step, line in each.items() if name in line}
            for each in (run.logged(), theirs)
        )
        assert mine == pytest.approx(expected, rel=tolerance, abs=0)


def test_a_run_that_is_asked_to_stop_saves_at_its_step_and_goes_on_from_there(
    undisturbed: Lines, prepared: Store, tmp_path: Path
) -> None:
    first = Running(tmp_path, prepared, WorkersConfig(count=2))
    first.come_to(11)
    first.stop.set()
    # The ranks learn it with their next heartbeat, within five seconds.
    first.go_slowly(12)
    first.end()
    assert isinstance(first.error, GracefulStopError), first.log()
    (left,) = re.findall(r"rank 0 .*: stopped on request at step (\d+)", first.log())
    assert 11 <= int(left) < STEPS
    assert first.session.checkpoints.exists(f"step-{int(left):08d}/complete.json")
    assert not first.session.is_complete()
    second = Running(tmp_path, prepared, WorkersConfig(count=2))
    second.end()
    assert second.error is None, second.log()
    assert f"resumed at step {left} of {STEPS}" in second.log()
    assert_same_batches(second, undisturbed)
    assert_same_losses(second, undisturbed)


def test_a_worker_that_hangs_is_named_and_the_group_started_again(
    undisturbed: Lines, prepared: Store, tmp_path: Path
) -> None:
    run = Running(tmp_path, prepared, WorkersConfig(count=2, hang_seconds=30))
    run.come_to(11)
    (pid,) = re.findall(r"rank 1 of 2 \(pid (\d+)\): teacher: .* started", run.log())
    os.kill(int(pid), signal.SIGSTOP)
    run.pace.allow(STEPS)
    run.until(lambda: "it is killed" in run.log())
    (line,) = re.findall(r"rank \d \(pid .*it is killed.*", run.log())
    assert line.startswith(f"rank 1 (pid {pid} on "), line
    # Since its last heartbeat, which may be some seconds old.
    assert "hangs: no heartbeat since" in line
    run.end()
    assert run.error is None, run.log()
    assert f"resumed at step 8 of {STEPS}" in run.log()
    assert_same_batches(run, undisturbed)
    assert_same_losses(run, undisturbed)


def test_a_student_goes_on_with_fewer_workers_and_grows_again(
    undisturbed: Lines, cluster: Cluster, prepared: Store, tmp_path: Path
) -> None:
    workers = WorkersConfig(count=3, min_count=2, resize_seconds=3)
    run = Running(tmp_path, prepared, workers)
    run.until(lambda: run.started_with(3))
    run.come_to(11)
    cluster.remove_node(cluster.list_all_nodes()[-1])
    run.pace.allow(12)
    run.until(lambda: run.started_with(2))
    assert f"resumed at step 8 of {STEPS}" in run.log()
    run.come_to(20)
    cluster.add_node(num_cpus=1)
    left = int(
        run.until(
            lambda: re.findall(r"rank 0 of 2 .*: stopped on request at step (\d+)", run.log())
        )[-1]
    )
    assert 20 <= left < STEPS
    # Nothing is lost when it grows.
    run.until(lambda: re.search(rf"rank 0 of 3 .* resumed at step {left} of {STEPS}", run.log()))
    run.end()
    assert run.error is None, run.log()
    assert_same_batches(run, undisturbed)
    assert_same_losses(run, undisturbed, tolerance=1e-3)


def test_a_group_leaves_a_node_that_will_be_taken_away(
    undisturbed: Lines, cluster: Cluster, prepared: Store, tmp_path: Path
) -> None:
    workers = WorkersConfig(count=3, min_count=2, max_failures=0, max_preemptions=1)
    run = Running(tmp_path, prepared, workers)
    run.until(lambda: run.started_with(3))
    run.come_to(11)
    node = cluster.list_all_nodes()[-1]
    drain(node.node_id, cluster.address, seconds=60)
    left = int(
        run.until(
            lambda: re.findall(r"rank 0 of 3 .*: stopped on request at step (\d+)", run.log())
        )[0]
    )
    assert 11 <= left < STEPS
    run.until(lambda: run.started_with(2))
    cluster.remove_node(node)
    assert f"resumed at step {left} of {STEPS}" in run.log(), "nothing is lost within the notice"
    run.end()
    assert run.error is None, run.log()
    assert_same_batches(run, undisturbed)
    assert_same_losses(run, undisturbed, tolerance=1e-3)


class MistakenJob:
    """A job with a mistake in its code."""

    def run(self) -> None:
        raise TypeError("no such argument")


class DamagedJob:
    """A job that fails on rank 1, while rank 0 waits for it."""

    def run(self) -> None:
        worker = current_rank()
        if worker.rank == 1:
            torch.ones(2, 3) @ torch.ones(2, 3)
        worker.barrier()


def test_an_error_of_one_rank_that_would_come_again_ends_the_stage_at_once() -> None:
    progress = RunningStage("teacher")
    with pytest.raises(KdscaleError, match="RuntimeError: mat1 and mat2 shapes cannot be") as found:
        run_workers(DamagedJob(), WorkersConfig(count=2), progress)
    assert "\n" not in found.value.problem
    progress.drain()
    assert progress.latest.failed_groups <= 1


def test_a_mistake_in_the_code_ends_its_stage_at_once_and_is_shown() -> None:
    progress = RunningStage("teacher")
    with pytest.raises(KdscaleError, match="TypeError: no such argument"):
        run_workers(MistakenJob(), WorkersConfig(count=2), progress)
    assert 'raise TypeError("no such argument")' in "\n".join(progress.drain())
    assert progress.latest.failed_groups <= 1


def drain(node_id: str, address: str, seconds: int) -> None:
    """Give notice, as a cloud does, that the node will be taken away."""
    options = {
        "address": address,
        "node-id": node_id,
        "reason": "DRAIN_NODE_REASON_PREEMPTION",
        "reason-message": "spot machine",
        "deadline-remaining-seconds": str(seconds),
    }
    ray_program = str(Path(sys.executable).with_name("ray"))
    arguments = [part for name, value in options.items() for part in (f"--{name}", value)]
    subprocess.run([ray_program, "drain-node", *arguments], check=True, capture_output=True)
