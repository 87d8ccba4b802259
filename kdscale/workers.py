"""The only import of ray.train: runs a loop on a group of workers, and tells a worker what it has.

Device, dtype and communication backend are chosen here and nowhere else: a GPU worker computes in
bfloat16 over NCCL, a CPU worker in float32 over gloo (bfloat16 is slower on most CPUs).

Workers save their state through the store (train/checkpoint.py) and not through `ray.train.report`:
that keeps one retry policy and one layout for every store, survives a new driver, and lets another
world size resume. Ray Train starts the group again after a failure; the loop then finds its last
checkpoint, or its missing units, by itself.
"""

import logging
import os
import sys
import tempfile
import uuid
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from kdscale.attempts import Attempts
from kdscale.config.training import WorkersConfig
from kdscale.errors import KdscaleError
from kdscale.progress import Reporter, StageProgress
from kdscale.ray_session import beside_driver

# How this worker process reaches the driver; None outside of a worker group.
_reporter: Reporter | None = None
_attempt = 0

# Errors of ours or of the input: not of a machine, a network or a lost peer.
_FINAL = (
    KdscaleError,
    AssertionError,
    AttributeError,
    ImportError,
    LookupError,
    TypeError,
    ValueError,
)


@dataclass(frozen=True)
class Worker:
    """One rank of a worker group."""

    rank: int
    world_size: int
    device: torch.device
    attempt: int = 0  # starts of this group before the present one

    @property
    def dtype(self) -> torch.dtype:
        """What forward and backward compute in."""
        return torch.bfloat16 if self.device.type == "cuda" else torch.float32

    def all_reduce_sum(self, values: torch.Tensor) -> torch.Tensor:
        """The sum of `values` over all ranks, on every rank; in place where there is more than
        one."""
        if self.world_size > 1:
            dist.all_reduce(values)
        return values

    def barrier(self) -> None:
        """Wait for all ranks."""
        if self.world_size > 1:
            dist.barrier()

    def broadcast(self, value: Any) -> Any:
        """Rank 0's `value` (small, picklable) on every rank."""
        if self.world_size == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=0)
        return box[0]

    def say(self, text: str) -> None:
        """A line for the driver's terminal, with this rank and its process id."""
        line = f"rank {self.rank} of {self.world_size} (pid {os.getpid()}): {text}"
        if _reporter is None:
            print(line, flush=True)
        else:
            _reporter.say(line)

    def report(self, done: int, total: int, *, tokens: int = 0, note: str = "") -> None:
        """How far the stage is, for the driver's progress bar; `tokens` processed so far."""
        if _reporter is not None:
            _reporter.update(done, total, tokens, note)


def run_workers(
    loop: Callable[[dict[str, Any]], None],
    job: dict[str, Any],
    workers: WorkersConfig,
    progress: StageProgress,
) -> None:
    """Run `loop(job)` on every worker of a new group until all return. Needs a running Ray.

    `job` must be picklable and the same for all ranks. A group that loses a worker is started again
    up to `workers.max_failures` times. Raises KdscaleError where a worker raised one, or where the
    cluster is too small.
    """
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer
    from ray.train.v2.api.exceptions import TrainingFailedError

    stage = progress.stage
    _check_resources(workers, stage)
    reporter = progress.reporter()
    attempts = beside_driver(Attempts).remote()
    resources = {"CPU": workers.cpus}
    if workers.gpus:
        resources["GPU"] = workers.gpus
    trainer = TorchTrainer(
        # With the job in it: as `train_loop_config` it would go to Ray Train's controller as well,
        # which would import all that a stage needs before it starts the first worker.
        _Loop(loop, job, workers, attempts, reporter),
        scaling_config=ScalingConfig(
            num_workers=workers.count,
            use_gpu=workers.gpus > 0,
            resources_per_worker=resources,
        ),
        torch_config=TorchConfig(
            backend="nccl" if workers.gpus else "gloo",
            timeout_s=workers.collective_timeout_seconds,
        ),
        run_config=RunConfig(
            # A name that was used before would make Ray restore that run: resuming is ours.
            name=f"{stage}-{uuid.uuid4().hex[:8]}",
            storage_path=os.path.join(tempfile.gettempdir(), f"kdscale-ray-train-{os.getuid()}"),
            failure_config=FailureConfig(max_failures=workers.max_failures),
            callbacks=[_tell_failures(reporter)],
        ),
    )
    try:
        trainer.fit()
    except TrainingFailedError as error:
        raise _readable(error, stage) from error


def _tell_failures(reporter: Reporter) -> Any:
    """A callback of Ray Train's controller that says which ranks failed, and how."""
    from ray.train import UserCallback

    class TellFailures(UserCallback):
        def after_exception(
            self, run_context: Any, worker_exceptions: dict[int, Exception]
        ) -> None:
            for rank, error in worker_exceptions.items():
                reporter.say(f"rank {rank} failed: {_last_line(error)}")

    return TellFailures()


def _last_line(error: Exception) -> str:
    """The end of an error's text: of a traceback, what was raised."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__


class _ToDriver(logging.Handler):
    """Brings what our own modules log in a worker to the driver's terminal."""

    def emit(self, record: logging.LogRecord) -> None:
        current_worker().say(self.format(record))


class _Loop:
    """Prepares a worker's process, then runs the loop."""

    def __init__(
        self,
        loop: Callable[[dict[str, Any]], None],
        job: dict[str, Any],
        workers: WorkersConfig,
        attempts: Any,
        reporter: Reporter,
    ) -> None:
        self._loop = loop
        self._job = job
        self._workers = workers
        self._attempts = attempts
        self._reporter = reporter

    def __call__(self) -> None:
        import ray

        # Ray Train restarts a group whatever the error was; a mistake in a config stays one.
        global _attempt
        _attempt, final = ray.get(self._attempts.start.remote(dist.get_rank()))
        if final is not None:
            raise final
        try:
            self._run()
        except _FINAL as error:
            ray.get(self._attempts.give_up.remote(error))
            raise

    def _run(self) -> None:
        global _reporter
        _reporter = self._reporter
        logging.getLogger("kdscale").addHandler(_ToDriver())
        # Several workers share a machine: each keeps to its own share of the cores.
        # DeepSpeed looks for the tools that build its operators beside the interpreter's programs.
        os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        torch.set_num_threads(max(1, int(self._workers.cpus)))
        if self._workers.gpus:
            from ray.train.torch import get_device

            torch.cuda.set_device(get_device())
        _quiet_libraries()
        self._loop(self._job)


def _quiet_libraries() -> None:
    """Keep the libraries' remarks about themselves out of the run's log; errors stay."""
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    # DeepSpeed calls collectives by names that torch means to retire.
    warnings.filterwarnings("ignore", category=FutureWarning, module="torch.distributed")


def current_worker() -> Worker:
    """The worker that this process is; outside of a worker group, a group of one."""
    if not dist.is_initialized():
        return Worker(0, 1, torch.device("cpu"))
    if dist.get_backend() == "nccl":
        device = torch.device("cuda", torch.cuda.current_device())
    else:
        device = torch.device("cpu")
    return Worker(dist.get_rank(), dist.get_world_size(), device, _attempt)


def _check_resources(workers: WorkersConfig, stage: str) -> None:
    """Ray would wait for ever for resources that the cluster cannot give: say so instead."""
    import ray

    have = ray.cluster_resources()
    for name, each in (("CPU", workers.cpus), ("GPU", workers.gpus)):
        if each * workers.count > have.get(name, 0.0) and not _autoscales():
            raise KdscaleError(
                f"The stage {stage!r} asks for {workers.count} workers with {each:g} {name} each, "
                f"but the cluster has {have.get(name, 0.0):g} {name}.",
                f"Lower the stage's workers.count or workers.{name.lower()}s, or connect to a "
                "larger cluster (RAY_ADDRESS).",
            )


def _autoscales() -> bool:
    """Whether the cluster may grow: then a lack of resources is not final."""
    return os.path.exists(os.path.expanduser("~/ray_bootstrap_config.yaml"))


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
