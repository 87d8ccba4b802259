"""One rank of a worker group: what it has, and how it speaks with the other ranks and the driver.

Device, dtype and communication backend are chosen in this room and nowhere else: a GPU worker
computes in bfloat16 over NCCL, a CPU worker in float32 over gloo (bfloat16 is slower on most CPUs).
"""

import os
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist

from kdscale import metrics
from kdscale.liveness import Heart
from kdscale.progress import Reporter


class LeavingError(Exception):
    """Ends a loop that was asked to end, after it has saved what it had. All ranks raise it
    together; it is no failure."""


@dataclass(frozen=True)
class Line:
    """How a worker's process reaches its driver."""

    reporter: Reporter
    heart: Heart
    attempt: int  # starts of the stage's groups before the present one


# None outside of a worker group.
_line: Line | None = None


def connect(line: Line) -> None:
    """Give this process its line to the driver."""
    global _line
    _line = line


@dataclass(frozen=True)
class Worker:
    """One rank of a worker group."""

    rank: int
    world_size: int
    device: torch.device
    attempt: int = 0  # starts of this stage's groups before the present one

    @property
    def dtype(self) -> torch.dtype:
        """What forward and backward compute in."""
        return torch.bfloat16 if self.device.type == "cuda" else torch.float32

    def all_reduce_sum(self, values: torch.Tensor) -> torch.Tensor:
        """The sum of `values` over all ranks, on every rank; in place where there is more than
        one."""
        if self.world_size > 1:
            with _waiting():
                dist.all_reduce(values)
        return values

    def barrier(self) -> None:
        """Wait for all ranks."""
        if self.world_size > 1:
            with _waiting():
                dist.barrier()

    def broadcast(self, value: Any) -> Any:
        """Rank 0's `value` (small, picklable) on every rank."""
        if self.world_size == 1:
            return value
        box = [value]
        with _waiting():
            dist.broadcast_object_list(box, src=0)
        return box[0]

    def say(self, text: str) -> None:
        """A line for the driver's terminal, with this rank and its process id."""
        line = f"rank {self.rank} of {self.world_size} (pid {os.getpid()}): {text}"
        if _line is None:
            print(line, flush=True)
        else:
            _line.reporter.say(line)

    def report(self, done: int, total: int, *, tokens: int = 0, note: str = "") -> None:
        """How far the stage is, for the driver's progress bar; `tokens` processed so far."""
        metrics.progress(note, done, total, tokens)
        if _line is not None:
            _line.reporter.update(done, total, tokens, note)

    def beat(self, place: str) -> None:
        """This rank has got further, to `place`: it does not hang."""
        if _line is not None:
            _line.heart.beat(place)

    def asked_to_leave(self) -> bool:
        """Whether this rank knows that the group is to save what it has and leave. Others may learn
        it a few seconds earlier or later."""
        return _line is not None and bool(_line.heart.asked)

    def any_rank(self, flag: bool) -> bool:
        """Whether `flag` holds on any rank. Collective."""
        return self.all_reduce_sum(torch.tensor(float(flag), device=self.device)).item() > 0

    def leave_if_asked(self) -> None:
        """LeavingError on all ranks where any was asked to leave. Collective."""
        if self.any_rank(self.asked_to_leave()):
            raise LeavingError


def _waiting() -> AbstractContextManager[None]:
    return nullcontext() if _line is None else _line.heart.waiting()


def lone_worker() -> Worker:
    """A command's own process as a worker: on the GPU where there is one."""
    return Worker(0, 1, torch.device("cuda" if torch.cuda.is_available() else "cpu"))


def current_worker() -> Worker:
    """The worker that this process is; outside of a worker group, a group of one."""
    if not dist.is_initialized():
        return Worker(0, 1, torch.device("cpu"))
    if dist.get_backend() == "nccl":
        device = torch.device("cuda", torch.cuda.current_device())
    else:
        device = torch.device("cpu")
    attempt = 0 if _line is None else _line.attempt
    return Worker(dist.get_rank(), dist.get_world_size(), device, attempt)
