"""Main function of a worker's process: the jobs of its stages, one after the other."""

import gc
import logging
import os
import sys
import time
import traceback
import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
import torch.distributed as dist

from kdscale.config.training import WorkersConfig
from kdscale.distributed.failures import describe_failure, is_retryable
from kdscale.distributed.rank import GracefulStopError, connect, current_rank
from kdscale.tracking import prometheus as metrics
from kdscale.workers.channel import Assignment, Channel
from kdscale.workers.hang_detector import HeartbeatThread, RankHeartbeat

_POLL_SECONDS = 0.2


class Job(Protocol):
    """Work of a stage; picklable, and the same for all ranks."""

    def run(self) -> None:
        """Do this rank's part."""


def worker_main(channel: Channel, workers: WorkersConfig, fit: str) -> None:
    """Run the jobs that `channel` has for `fit` on this rank, until there are no more."""
    import ray

    try:
        _prepare_process(workers)
        group, done = ray.get_runtime_context().get_placement_group_id(), -1
        while (assignment := _next_job(channel, fit, group, done)) is not None:
            if not _run_job(assignment, channel, workers.hang_seconds):
                return
            done = assignment.number
            _free_memory()
            channel.mark_done(group, dist.get_rank(), dist.get_world_size())
    except Exception as error:
        # An error of a job has been reported before, and the first report counts.
        _report(channel, error, "A worker could not start", print)
        raise


def _next_job(channel: Channel, fit: str, group: str, done: int) -> Assignment | None:
    """Wait for the job after job `done`; None if there are no more."""
    while (found := channel.next_job(fit, group, done)) == "wait":
        time.sleep(_POLL_SECONDS)
    return None if found == "end" else found


def _run_job(assignment: Assignment, channel: Channel, hang_seconds: float) -> bool:
    """Run the job; return False if this rank has left it because it was asked to."""
    import ray

    # In a list, so that the channel's process does not unpickle it.
    job: Job = ray.get(assignment.job[0])
    # Collections skip the libraries' objects, over which each would take half a second.
    gc.freeze()
    rank, attempt, stage = dist.get_rank(), assignment.attempt, assignment.stage
    channel.join(RankHeartbeat(rank, attempt), ray.get_runtime_context().current_actor)
    heartbeats = HeartbeatThread(rank, attempt, hang_seconds, channel.beat)
    connect(_RankChannel(channel, heartbeats, attempt))
    metrics.bind(assignment.run, stage, rank, attempt)
    stopped = False
    try:
        job.run()
    except GracefulStopError:
        stopped = True
    except Exception as error:
        what = f"The stage {stage!r} failed on its workers"
        _report(channel, error, what, lambda text: channel.log_line(f"rank {rank}: {text}"))
        raise
    finally:
        heartbeats.stop()
        metrics.release()
    channel.leave(rank)
    return not stopped


def _report(channel: Channel, error: Exception, what: str, log: Callable[[str], None]) -> None:
    """Report an error that no restart can repair, and log its traceback if it may be needed."""
    if is_retryable(error):
        return
    described, is_clear = describe_failure(error, what)
    if not is_clear:
        log(traceback.format_exc())
    channel.fail(described)


@dataclass(frozen=True)
class _RankChannel:
    """A rank's side of the channel: see `kdscale.distributed.rank.DriverChannel`."""

    channel: Channel
    heartbeats: HeartbeatThread
    attempt: int

    def log_line(self, text: str) -> None:
        self.channel.log_line(text)

    def update(self, done: int, total: int, tokens: int, note: str) -> None:
        metrics.progress(note, done, total, tokens)
        self.channel.update(done, total, tokens, note)

    def beat(self, place: str) -> None:
        self.heartbeats.beat(place)

    def stop_requested(self) -> bool:
        return bool(self.heartbeats.signal)

    def waiting(self) -> AbstractContextManager[None]:
        return self.heartbeats.waiting()


def _prepare_process(workers: WorkersConfig) -> None:
    """Set up logging, threads and device of this process."""
    logging.getLogger("kdscale").addHandler(_ToDriver())
    # DeepSpeed looks for the tools that build its operators beside the interpreter's programs.
    os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    # Several workers share a machine: each keeps to its own share of the cores.
    torch.set_num_threads(max(1, int(workers.cpus)))
    if workers.gpus:
        from ray.train.torch import get_device

        torch.cuda.set_device(get_device())
    _quiet_libraries()


def _free_memory() -> None:
    """Free the last job's memory, and start the next one's peak from nothing."""
    # A model may be kept alive by cycles alone.
    gc.collect()
    with suppress(OSError):  # Linux alone has it
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


class _ToDriver(logging.Handler):
    """Handler that brings the log of our own modules to the driver's terminal."""

    def emit(self, record: logging.LogRecord) -> None:
        current_rank().say(self.format(record))


def _quiet_libraries() -> None:
    """Keep the libraries' remarks about themselves out of the run's log; errors stay."""
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    # DeepSpeed calls collectives by names that torch means to retire.
    warnings.filterwarnings("ignore", category=FutureWarning, module="torch.distributed")
