"""What a worker's process does around its loops."""

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
from typing import Any, Protocol

import torch
import torch.distributed as dist

from kdscale.config.training import WorkersConfig
from kdscale.distributed.failures import is_mendable, word_error
from kdscale.distributed.rank import GracefulStopError, connect, current_rank
from kdscale.tracking import prometheus as metrics
from kdscale.workers.hang_detector import HeartbeatThread, RankHeartbeat
from kdscale.workers.progress import Reporter
from kdscale.workers.task_queue import Turn

_POLL_SECONDS = 0.2


class Job(Protocol):
    """What a stage has its workers do; picklable, and the same for all ranks."""

    def run(self) -> None:
        """Do this rank's part."""


@dataclass(frozen=True)
class Task:
    """What the ranks of a group are to do for a stage."""

    job: Job
    reporter: Reporter
    names: tuple[str, str]
    """Of run and stage."""


@dataclass(frozen=True)
class _Channel:
    """The rank's channel to its driver: see `kdscale.distributed.rank.DriverChannel`."""

    reporter: Reporter
    heart: HeartbeatThread
    attempt: int

    def log_line(self, text: str) -> None:
        self.reporter.say(text)

    def update(self, done: int, total: int, tokens: int, note: str) -> None:
        metrics.progress(note, done, total, tokens)
        self.reporter.update(done, total, tokens, note)

    def beat(self, place: str) -> None:
        self.heart.beat(place)

    def stop_requested(self) -> bool:
        return bool(self.heart.asked)

    def waiting(self) -> AbstractContextManager[None]:
        return self.heart.waiting()


class Start:
    """What Ray Train runs on every rank: the desk's tasks, one after the other."""

    def __init__(self, workers: WorkersConfig, desk: Any) -> None:
        self._workers = workers
        self._desk = desk

    def __call__(self) -> None:
        try:
            self._work()
        except Exception as error:
            # Told before, if it was of a task.
            self._give_up(error, "A worker could not start")
            raise

    def _work(self) -> None:
        import ray

        self._prepare()
        group = ray.get_runtime_context().get_placement_group_id()
        number = -1
        while (turn := self._next_turn(group, number)) is not None:
            if not self._take(turn):
                return
            number = turn.number
            _tidy_memory()
            ray.get(self._desk.through.remote(group, dist.get_rank(), dist.get_world_size()))

    def _next_turn(self, group: str, number: int) -> Turn | None:
        """What comes after task `number`, None at the end. Waits for it."""
        import ray

        while (found := ray.get(self._desk.next.remote(group, number))) == "wait":
            time.sleep(_POLL_SECONDS)
        return None if found == "end" else found

    def _take(self, turn: Turn) -> bool:
        """Do the task; False where this rank has left it because it was asked to."""
        import ray

        # In a list: the desk is not to unpack it, which would import all that a stage needs.
        task: Task = ray.get(turn.task[0])
        rank = dist.get_rank()
        task.reporter.join(RankHeartbeat(rank, turn.attempt))
        heart = HeartbeatThread(rank, turn.attempt, self._workers.hang_seconds, task.reporter.beat)
        connect(_Channel(task.reporter, heart, turn.attempt))
        metrics.bind(*task.names, rank, turn.attempt)
        leaves = False
        try:
            task.job.run()
        except GracefulStopError:
            leaves = True
        except Exception as error:
            what = f"The stage {task.names[1]!r} failed on its workers"
            self._give_up(error, what, lambda text: task.reporter.say(f"rank {rank}: {text}"))
            raise
        finally:
            heart.stop()
            metrics.release()
        task.reporter.leave(rank, leaves)
        return not leaves

    def _give_up(self, error: Exception, what: str, say: Callable[[str], None] = print) -> None:
        """Tell the desk of an `error`, in `what` failed, that no restart can mend, once `say` has
        got the traceback that somebody may need. The first that the desk is told counts."""
        import ray

        if is_mendable(error):
            return
        final, says_all = word_error(error, what)
        if not says_all:
            say(traceback.format_exc())
        ray.get(self._desk.give_up.remote(final))

    def _prepare(self) -> None:
        """Make this process a worker."""
        logging.getLogger("kdscale").addHandler(_ToDriver())
        # DeepSpeed looks for the tools that build its operators beside the interpreter's programs.
        os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        # Several workers share a machine: each keeps to its own share of the cores.
        torch.set_num_threads(max(1, int(self._workers.cpus)))
        if self._workers.gpus:
            from ray.train.torch import get_device

            torch.cuda.set_device(get_device())
        _quiet_libraries()


def _tidy_memory() -> None:
    """Give back what the last task held, and measure the next one's peak by itself."""
    # A model may be kept alive by cycles alone.
    gc.collect()
    with suppress(OSError):  # Linux alone has it
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


class _ToDriver(logging.Handler):
    """Brings what our own modules log in a worker to the driver's terminal."""

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
