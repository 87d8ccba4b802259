"""Run a loop on a group of workers until all of them return, over lost, hung and added workers.

Workers save their state through the store (train/checkpoint.py) and not through `ray.train.report`:
that keeps one retry policy and one layout for every store, survives a new driver, and lets another
world size resume. Ray Train starts the group again after a failure; the loop then finds its last
checkpoint, or its missing units, by itself.
"""

import os
import tempfile
import threading
import uuid
from collections.abc import Callable
from concurrent.futures import Future
from itertools import count
from typing import Any

from kdscale.attempts import Attempts
from kdscale.config.training import WorkersConfig
from kdscale.errors import KdscaleError
from kdscale.progress import Reporter, StageProgress
from kdscale.ray_session import beside_driver
from kdscale.workers.events import callbacks
from kdscale.workers.start import Start
from kdscale.workers.worker import LeavingError

_POLL_SECONDS = 0.5


def run_workers(
    loop: Callable[[dict[str, Any]], None],
    job: dict[str, Any],
    workers: WorkersConfig,
    progress: StageProgress,
) -> None:
    """Run `loop(job)` on every worker of a new group until all return. Needs a running Ray.

    `job` must be picklable and the same for all ranks. A group that loses a worker, or in which one
    hangs, is started again up to `workers.max_failures` times. Raises KdscaleError where a worker
    raised one, or where the cluster is too small; LeavingError where the stage was asked to stop
    and the workers have saved what they had.
    """
    from ray.train.v2.api.exceptions import TrainingFailedError

    stage = progress.stage
    _check_resources(workers, stage)
    reporter = progress.reporter()
    names = (progress.run, stage)
    start = Start(loop, job, workers, beside_driver(Attempts).remote(), reporter, names)
    for preemptions in count():
        if progress.asked_to_stop():
            raise LeavingError
        if 0 <= workers.max_preemptions < preemptions:
            raise KdscaleError(
                f"The stage {stage!r} lost its nodes {preemptions} times to preemption.",
                "Raise workers.max_preemptions, or run the same command again: it goes on.",
            )
        reporter.ask("")
        try:
            _supervised(_fit(start, workers, reporter, stage), workers, reporter, progress)
        except TrainingFailedError as error:
            raise _readable(error, stage) from error
        if not reporter.left():
            return
        # The workers left before their work was done: to stop, or ahead of a preemption.


def _fit(start: Start, workers: WorkersConfig, reporter: Reporter, stage: str) -> Callable[[], Any]:
    """Ray Train's `fit` for the stage."""
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    resources = {"CPU": workers.cpus}
    if workers.gpus:
        resources["GPU"] = workers.gpus
    elastic = workers.least < workers.count
    trainer = TorchTrainer(
        # With the job in it: as `train_loop_config` it would go to Ray Train's controller as well,
        # which would import all that a stage needs before it starts the first worker.
        start,
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
            name=f"{stage}-{uuid.uuid4().hex[:8]}",
            storage_path=os.path.join(tempfile.gettempdir(), f"kdscale-ray-train-{os.getuid()}"),
            failure_config=FailureConfig(
                max_failures=workers.max_failures,
                max_preemption_failures=workers.max_preemptions,
            ),
            callbacks=callbacks(reporter, patience=workers.hang_seconds),
        ),
    )
    fit: Callable[[], Any] = trainer.fit
    return fit


def _supervised(
    fit: Callable[[], Any], workers: WorkersConfig, reporter: Reporter, progress: StageProgress
) -> None:
    """Run `fit` in a thread, and meanwhile pass on a request to stop and end workers that hang.

    In the main thread Ray Train would take SIGINT for itself and end the group where it stands.
    """
    done: Future[None] = Future()

    def run() -> None:
        try:
            fit()
        except BaseException as error:
            done.set_exception(error)  # raised below, in the caller's thread
        else:
            done.set_result(None)

    thread = threading.Thread(target=run, name="fit", daemon=True)
    thread.start()
    asked = False
    while thread.is_alive():
        thread.join(_POLL_SECONDS)
        if progress.asked_to_stop() and not asked:
            asked = True
            reporter.ask("stop")
        _end_silent(reporter, workers.hang_seconds)
    done.result()


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


def _readable(error: Exception, stage: str) -> Exception:
    """The KdscaleError that a worker raised, if there is one; else one that says what happened."""
    failures = getattr(error, "worker_failures", {})
    for failure in failures.values():
        cause: BaseException | None = failure
        while cause is not None:
            for candidate in (cause, getattr(cause, "_base_exc", None)):
                if isinstance(candidate, KdscaleError):
                    return candidate
            cause = cause.__cause__
    return KdscaleError(
        f"The stage {stage!r} failed on its workers after all restarts: {error}",
        "The traceback above names the cause. Once it is mended, run the same command again: "
        "finished work is kept.",
    )
