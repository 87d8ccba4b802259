"""Run loops on groups of workers until all ranks return, over lost, hung and added workers.

Workers save their state through the store (train/checkpoint.py) and not through `ray.train.report`:
that keeps one retry policy and one layout for every store, survives a new driver, and lets another
world size resume. Ray Train starts the group again after a failure; the loop then finds its last
checkpoint, or its missing shards, by itself.

To start a group takes longer than many a stage of a small model. So CPU workers that were not
disturbed go on with the next stage, where it asks for the same ones. GPU workers end with their
stage: what a process leaves on its device (context, communicators, fragments) would be missing from
the next one's memory.
"""

import os
import tempfile
import threading
import uuid
from collections.abc import Callable
from concurrent.futures import Future
from itertools import count
from typing import Any, Self

from kdscale.config.training import WorkersConfig
from kdscale.distributed.rank import GracefulStopError
from kdscale.errors import KdscaleError
from kdscale.store import explain
from kdscale.workers.progress import Reporter, StageProgress
from kdscale.workers.ray_callbacks import callbacks
from kdscale.workers.ray_session import beside_driver
from kdscale.workers.task_queue import Desk
from kdscale.workers.worker_main import Job, Start, Task

_POLL_SECONDS = 0.5
_CLOSE_SECONDS = 60.0


class WorkerGroups:
    """The worker groups of a run, one at a time; a context manager around all of its stages. Needs
    a running Ray once it runs a loop."""

    def __init__(self) -> None:
        self._idle: _Group | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        if self._idle is not None:
            self._idle.close()

    def run(self, job: Job, workers: WorkersConfig, progress: StageProgress) -> None:
        """Run `job` on every worker of a group until all return.

        A group that loses a worker, or in which
        one hangs, is started again up to `workers.max_failures` times. Raises KdscaleError where a
        worker raised one, or another error that no restart can mend, or where the cluster is too
        small; LeavingError where the stage was asked to stop and the workers have saved what they
        had.
        """
        from ray.train.v2.api.exceptions import TrainingFailedError

        stage = progress.stage
        _check_resources(workers, stage)
        task = Task(job, progress.reporter(), (progress.run, stage))
        for preemptions in count():
            if progress.asked_to_stop():
                raise GracefulStopError
            if 0 <= workers.max_preemptions < preemptions:
                raise KdscaleError(
                    f"The stage {stage!r} lost its nodes {preemptions} times to preemption.",
                    "Raise workers.max_preemptions, or run the same command again: it goes on.",
                )
            task.reporter.ask("")
            group = self._group_of(workers)
            try:
                if group.work(task, progress):
                    break
            except TrainingFailedError as error:
                raise _failed(error, stage, " after all restarts") from error
            # The workers left before their work was done: to stop, or ahead of a preemption.
        if workers.gpus or group.starts() > 1:
            group.close()
        else:
            self._idle = group

    def _group_of(self, workers: WorkersConfig) -> "_Group":
        """The idle group, where it is of such workers and still there; else a new one."""
        group, self._idle = self._idle, None
        if group is not None and group.workers == workers and group.is_alive():
            return group
        if group is not None:
            group.close()
        return _Group(workers)


def run_workers(job: Job, workers: WorkersConfig, progress: StageProgress) -> None:
    """See WorkerGroups.run: on a group of its own."""
    with WorkerGroups() as groups:
        groups.run(job, workers, progress)


class _Group:
    """Workers under one `fit` of Ray Train, which runs in a thread: in the main thread it would
    take SIGINT for itself and end the group where it stands."""

    def __init__(self, workers: WorkersConfig) -> None:
        self.workers = workers
        self._desk = beside_driver(Desk).remote()
        self._done: Future[None] = Future()
        self._fit = _make_fit(workers, self._desk)
        self._thread = threading.Thread(target=self._run, name="fit", daemon=True)
        self._thread.start()

    def is_alive(self) -> bool:
        """Whether it takes tasks."""
        return self._thread.is_alive()

    def starts(self) -> int:
        """How many times Ray Train has started it for the last task."""
        return int(_get(self._desk.starts.remote()))

    def work(self, task: Task, progress: StageProgress) -> bool:
        """Do a task, and meanwhile pass on a request to stop and end workers that hang. False where
        the ranks left it before it was done, as they were asked; raises what `fit` raises, and the
        error that a rank gave up with."""
        import ray

        _get(self._desk.put.remote([ray.put(task)], task.reporter))
        asked = False
        while True:
            is_alive = self._thread.is_alive()
            is_through, error = _get(self._desk.look.remote())
            if error is not None:
                raise _failed(error, progress.stage)
            if is_through or not is_alive:
                break
            self._thread.join(_POLL_SECONDS)
            if progress.asked_to_stop() and not asked:
                asked = True
                task.reporter.ask("stop")
            _end_silent(task.reporter, self.workers.hang_seconds)
        if not is_through:
            self._done.result()
        return bool(is_through)

    def close(self) -> None:
        """End it. For a group that has nothing to do."""
        self._desk.close.remote()
        self._thread.join(_CLOSE_SECONDS)

    def _run(self) -> None:
        try:
            self._fit()
        except BaseException as error:
            self._done.set_exception(error)  # raised in the thread that waits for the work
        else:
            self._done.set_result(None)


def _get(reference: Any) -> Any:
    import ray

    return ray.get(reference)


def _make_fit(workers: WorkersConfig, desk: Any) -> Callable[[], Any]:
    """Ray Train's `fit` of a group of such workers."""
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    resources = {"CPU": workers.cpus}
    if workers.gpus:
        resources["GPU"] = workers.gpus
    elastic = workers.least < workers.count
    trainer = TorchTrainer(
        # The tasks come from the desk: as `train_loop_config` they would go to Ray Train's
        # controller as well, which would import all that a stage needs before it starts a worker.
        Start(workers, desk),
        scaling_config=ScalingConfig(
            num_workers=(workers.least, workers.count) if elastic else workers.count,
            use_gpu=workers.gpus > 0,
            resources_per_worker=resources,
            elastic_resize_monitor_interval_s=workers.resize_seconds,
        ),
        torch_config=TorchConfig(
            backend="nccl" if workers.gpus else "gloo",
            timeout_s=workers.collective_timeout_seconds,
        ),
        run_config=RunConfig(
            # A name that was used before would make Ray restore that run: resuming is ours.
            name=f"workers-{uuid.uuid4().hex[:8]}",
            storage_path=os.path.join(tempfile.gettempdir(), f"kdscale-ray-train-{os.getuid()}"),
            failure_config=FailureConfig(
                max_failures=workers.max_failures,
                max_preemption_failures=workers.max_preemptions,
            ),
            callbacks=callbacks(desk, patience=workers.hang_seconds),
        ),
    )
    fit: Callable[[], Any] = trainer.fit
    return fit


def _end_silent(reporter: Reporter, hang_seconds: float) -> None:
    """Kill the workers that hang, and say which: Ray Train then starts the group again, as after
    any other loss of a worker."""
    import ray

    found = reporter.silent(hang_seconds)
    for silent, actor in found:
        reporter.say(f"{silent}; it is killed, and the group started again")
        ray.kill(actor)
    if found:
        reporter.close()


def _check_resources(workers: WorkersConfig, stage: str) -> None:
    """Ray would wait for ever for resources that the cluster cannot give: say so instead."""
    import ray

    have = ray.cluster_resources()
    for name, each in (("CPU", workers.cpus), ("GPU", workers.gpus)):
        if each * workers.least > have.get(name, 0.0) and not _autoscales():
            raise KdscaleError(
                f"The stage {stage!r} asks for {workers.least} workers with {each:g} {name} each, "
                f"but the cluster has {have.get(name, 0.0):g} {name}.",
                f"Lower the stage's workers.count or workers.{name.lower()}s, let it start with "
                "fewer by workers.min_count, or connect to a larger cluster (RAY_ADDRESS).",
            )


def _autoscales() -> bool:
    """Whether the cluster may grow: then a lack of resources is not final. `ray up` leaves a file
    on the head; on Kubernetes the manifest says it."""
    return os.environ.get("KDSCALE_AUTOSCALES") == "1" or os.path.exists(
        os.path.expanduser("~/ray_bootstrap_config.yaml")
    )


def _failed(error: Exception, stage: str, when: str = "") -> KdscaleError:
    """What the user reads of an error of the workers."""
    if isinstance(error, KdscaleError):
        return error
    ranks = getattr(error, "worker_failures", None) or {}
    for each in (error, *ranks.values()):
        if (known := explain(each)) is not None:
            return KdscaleError(
                f"The stage {stage!r} failed on its workers{when}: {known.problem}",
                f"{known.fix} Then run the same command again: finished work is kept.",
            )
    return KdscaleError(
        f"The stage {stage!r} failed on its workers{when}: {type(error).__name__}: {error}",
        "The traceback above names the cause. Once it is mended, run the same command again: "
        "finished work is kept.",
    )
