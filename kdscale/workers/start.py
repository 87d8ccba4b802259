"""What a worker's process does around its loop."""

import logging
import os
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from kdscale import metrics
from kdscale.config.training import WorkersConfig
from kdscale.errors import KdscaleError
from kdscale.liveness import Heart, Sign
from kdscale.progress import Reporter
from kdscale.workers.worker import LeavingError, Line, connect, current_worker

# Errors of ours or of the input: not of a machine, a network or a lost peer.
FINAL = (
    KdscaleError,
    AssertionError,
    AttributeError,
    ImportError,
    LookupError,
    TypeError,
    ValueError,
)


class Start:
    """Prepares a worker's process, then runs the loop."""

    def __init__(
        self,
        loop: Callable[[dict[str, Any]], None],
        job: dict[str, Any],
        workers: WorkersConfig,
        attempts: Any,
        reporter: Reporter,
        names: tuple[str, str],
    ) -> None:
        """names: of run and stage."""
        self._loop = loop
        self._job = job
        self._workers = workers
        self._attempts = attempts
        self._reporter = reporter
        self._names = names

    def __call__(self) -> None:
        import ray

        # Ray Train restarts a group whatever the error was; a mistake in a config stays one.
        group = ray.get_runtime_context().get_placement_group_id()
        attempt, final = ray.get(self._attempts.start.remote(group))
        if final is not None:
            raise final
        rank = dist.get_rank()
        self._reporter.join(Sign(rank, attempt))
        heart = Heart(rank, attempt, self._workers.hang_seconds, self._reporter.beat)
        connect(Line(self._reporter, heart, attempt))
        metrics.bind(*self._names, rank, attempt)
        leaves = False
        try:
            self._run()
        except LeavingError:
            leaves = True
        except FINAL as error:
            ray.get(self._attempts.give_up.remote(error))
            raise
        finally:
            heart.stop()
        self._reporter.leave(rank, leaves)

    def _run(self) -> None:
        logging.getLogger("kdscale").addHandler(_ToDriver())
        # DeepSpeed looks for the tools that build its operators beside the interpreter's programs.
        os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        # Several workers share a machine: each keeps to its own share of the cores.
        torch.set_num_threads(max(1, int(self._workers.cpus)))
        if self._workers.gpus:
            from ray.train.torch import get_device

            torch.cuda.set_device(get_device())
        _quiet_libraries()
        self._loop(self._job)


class _ToDriver(logging.Handler):
    """Brings what our own modules log in a worker to the driver's terminal."""

    def emit(self, record: logging.LogRecord) -> None:
        current_worker().say(self.format(record))


def _quiet_libraries() -> None:
    """Keep the libraries' remarks about themselves out of the run's log; errors stay."""
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    # DeepSpeed calls collectives by names that torch means to retire.
    warnings.filterwarnings("ignore", category=FutureWarning, module="torch.distributed")
