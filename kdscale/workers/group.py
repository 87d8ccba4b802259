"""Worker groups under Ray Train: jobs run on all ranks, over lost, hung and added workers.

Workers save their state through the store (train/checkpoint.py) and not through `ray.train.report`:
that keeps one retry policy and one layout for every store, survives a new driver, and lets another
world size resume. Ray Train starts the group again after a failure; the job then finds its last
checkpoint, or its missing shards, by itself.

Starting a group takes longer than many a stage of a small model. So undisturbed CPU workers stay
for the next stage if it asks for the same ones. GPU workers end with their stage: what a process
leaves on its device (context, communicators, fragments) would be missing from the next one's
memory.
"""

import os
import tempfile
import threading
import uuid
from collections.abc import Callable
from concurrent.futures import Future
from functools import partial
from itertools import count
from typing import Any, Self

from kdscale.config.training import WorkersConfig
from kdscale.distributed.rank import GracefulStopError
from kdscale.errors import KdscaleError
from kdscale.store import explain
from kdscale.workers.channel import Channel, start_channel
from kdscale.workers.progress import RunningStage
from kdscale.workers.ray_callbacks import callbacks
from kdscale.workers.worker_main import Job, worker_main

_POLL_SECONDS = 0.5
_CLOSE_SECONDS = 60.0


class WorkerGroups:
    """The worker groups of a run, one at a time; a context manager around all of its stages.

    Ray has to run once it runs a job.
    """

    def __init__(self) -> None:
        self._channel: Channel | None = None
        self._idle: _Group | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        if self._idle is not None:
            self._idle.close()

    def run(self, job: Job, workers: WorkersConfig, stage: RunningStage) -> None:
        """Run `job` on every worker of a group until all return.

        A group that loses a worker, or in which one hangs, is started again up to
        `workers.max_failures` times.

        Raises:
            KdscaleError: A worker raised one, or another error that no restart can repair, or the
                cluster is too small.
            GracefulStopError: The stage was asked to stop, and the workers have saved their state.
        """
        import ray

        _check_resources(workers, stage.name)
        if stage.stop_requested():
            raise GracefulStopError
        channel = self._channel = self._channel or start_channel()
        group = self._take_idle(workers) or _Group(workers, channel)
        channel.put_job([ray.put(job)], stage.name, stage.run, group.fit)
        stage.channel = channel
        for preemptions in count(1):
            if group.work(stage):
                break
            # The ranks left before the job was done: to stop, or ahead of a preemption.
            if stage.stop_requested():
                raise GracefulStopError
            if 0 <= workers.max_preemptions < preemptions:
                raise KdscaleError(
                    f"The stage {stage.name!r} lost its nodes {preemptions} times to preemption.",
                    "Raise workers.max_preemptions, or run the same command again: it resumes.",
                )
            group = _Group(workers, channel)
            channel.signal("")
            channel.admit(group.fit)
        if workers.gpus or channel.starts() > 1:
            group.close()
        else:
            self._idle = group

    def _take_idle(self, workers: WorkersConfig) -> "_Group | None":
        """Return the idle group if it has such workers; close it if it has not."""
        group, self._idle = self._idle, None
        if group is not None and group.workers == workers and group.thread.is_alive():
            return group
        if group is not None:
            group.close()
        return None


def run_workers(job: Job, workers: WorkersConfig, stage: RunningStage) -> None:
    """Run `job` on a group of workers for this job alone: see WorkerGroups.run."""
    with WorkerGroups() as groups:
        groups.run(job, workers, stage)


class _Group:
    """Workers under one `fit` of Ray Train.

    It runs in a thread: in the main thread it would take SIGINT for itself and end the group at
    once.
    """

    def __init__(self, workers: WorkersConfig, channel: Channel) -> None:
        self.workers = workers
        # A name that was used before would make Ray restore that run: resuming is ours.
        self.fit = f"workers-{uuid.uuid4().hex[:8]}"
        self._channel = channel
        self._ended: Future[None] = Future()
        self._fit = _make_fit(workers, channel, self.fit)
        self.thread = threading.Thread(target=self._run, name="fit", daemon=True)

    def work(self, stage: RunningStage) -> bool:
        """Watch over the channel's job; return False if the ranks left it because they were asked.

        Raises:
            KdscaleError: A rank reported an error, or `fit` failed.
        """
        from ray.train.v2.api.exceptions import TrainingFailedError

        if self.thread.ident is None:
            self.thread.start()
        channel, stop_sent = self._channel, False
        while True:
            is_alive = self.thread.is_alive()
            is_done, error = channel.poll()
            if error is not None:
                raise _stage_error(error, stage.name)
            if is_done:
                return True
            if not is_alive:
                break
            self.thread.join(_POLL_SECONDS)
            if stage.stop_requested() and not stop_sent:
                stop_sent = True
                channel.signal("stop")
            _kill_hung(channel, self.workers.hang_seconds)
        try:
            self._ended.result()
        except TrainingFailedError as failed:
            raise _stage_error(failed, stage.name, " after all restarts") from failed
        return False

    def close(self) -> None:
        """End the workers, which have nothing to do."""
        self._channel.admit("")
        self.thread.join(_CLOSE_SECONDS)

    def _run(self) -> None:
        try:
            self._fit()
        except BaseException as error:
            self._ended.set_exception(error)  # raised in the thread that waits for the job
        else:
            self._ended.set_result(None)


def _make_fit(workers: WorkersConfig, channel: Channel, name: str) -> Callable[[], Any]:
    """Return Ray Train's `fit` of a group of such workers."""
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    resources = {"CPU": workers.cpus}
    if workers.gpus:
        resources["GPU"] = workers.gpus
    elastic = workers.least < workers.count
    trainer = TorchTrainer(
        # Jobs come through the channel: as `train_loop_config` they would go to Ray Train's
        # controller as well, which would import all that a stage needs before it starts a worker.
        partial(worker_main, channel, workers, name),
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
            name=name,
            storage_path=os.path.join(tempfile.gettempdir(), f"kdscale-ray-train-{os.getuid()}"),
            failure_config=FailureConfig(
                max_failures=workers.max_failures,
                max_preemption_failures=workers.max_preemptions,
            ),
            callbacks=callbacks(channel, patience=workers.hang_seconds),
        ),
    )
    fit: Callable[[], Any] = trainer.fit
    return fit


def _kill_hung(channel: Channel, hang_seconds: float) -> None:
    """Kill the workers that hang: Ray Train then starts the group again, as after any loss."""
    import ray

    found = channel.hung_ranks(hang_seconds)
    for hung, actor in found:
        channel.log_line(f"{hung}; it is killed, and the group started again")
        ray.kill(actor)
    if found:
        channel.close_group()


def _check_resources(workers: WorkersConfig, stage: str) -> None:
    """Refuse workers that the cluster cannot have: Ray would wait for them for ever."""
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
    """Return whether the cluster may grow, so that a lack of resources is not final.

    `ray up` leaves a file on the head; on Kubernetes the manifest sets a variable.
    """
    return os.environ.get("KDSCALE_AUTOSCALES") == "1" or os.path.exists(
        os.path.expanduser("~/ray_bootstrap_config.yaml")
    )


def _stage_error(error: Exception, stage: str, when: str = "") -> KdscaleError:
    """Return what the user reads of an error of the workers."""
    if isinstance(error, KdscaleError):
        return error
    failed = f"The stage {stage!r} failed on its workers{when}"
    ranks = getattr(error, "worker_failures", None) or {}
    for each in (error, *ranks.values()):
        if (known := explain(each)) is not None:
            return KdscaleError(
                f"{failed}: {known.problem}",
                f"{known.fix} Then run the same command again: finished work is kept.",
            )
    return KdscaleError(
        f"{failed}: {type(error).__name__}: {error}",
        "Fix the cause, which the traceback above names. Then run the same command again: finished "
        "work is kept.",
    )
