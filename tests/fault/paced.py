"""A real training whose pace a test sets: no step runs before the test allows it."""

import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from kdscale.data.rows.order import uniform_batch
from kdscale.distributed.rank import current_rank
from kdscale.teacher import train as teacher_train
from kdscale.teacher.train import TeacherJob

PATIENCE_SECONDS = 400


class Pace:
    """A file that says how many steps may run."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def allow(self, steps: int) -> None:
        """Let the training come to `steps`."""
        new = self._path.with_suffix(f".{os.getpid()}")
        new.write_text(str(steps))
        new.replace(self._path)

    def allows(self, step: int) -> bool:
        """Return whether step `step`, counted from 0, may run."""
        return step < int(self._path.read_text())


@dataclass(frozen=True)
class PacedJob(TeacherJob):
    """Training of a teacher at a pace; a rank that is asked to stop waits no more."""

    pace: Pace

    def run(self) -> None:
        """Train on this rank."""
        train_paced(self)


def train_paced(job: PacedJob) -> None:
    """Train, and hold each batch back until it is allowed."""
    pace = job.pace
    worker = current_rank()

    def batch(position: int, rows: int, *rest: Any) -> np.ndarray:
        while not pace.allows(position // rows) and not worker.stop_requested():
            time.sleep(0.05)
        return uniform_batch(position, rows, *rest)

    teacher_train.uniform_batch = batch  # type: ignore[assignment]
    TeacherJob.run(job)
