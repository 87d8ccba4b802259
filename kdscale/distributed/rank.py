"""One rank of a worker group: collectives, device, dtype, and the channel to the driver.

Device, dtype and communication backend are chosen in this package and nowhere else: a GPU rank
computes in bfloat16 over NCCL, a CPU rank in float32 over gloo (bfloat16 is slower on most CPUs).
Nothing here knows Ray: `kdscale.workers` connects a process to its driver.
"""

import os
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Protocol

import torch
import torch.distributed as dist


class GracefulStopError(Exception):
    """Ends a training or capture that was asked to stop, once its state is saved.

    All ranks raise it together; it is not a failure.
    """


class DriverChannel(Protocol):
    """Channel from a rank to the process that started it."""

    @property
    def attempt(self) -> int:
        """Starts of the stage's worker groups before the present one."""

    def log_line(self, text: str) -> None:
        """Print a line on the driver's terminal."""

    def update(self, done: int, total: int, tokens: int, note: str) -> None:
        """Report the stage's progress."""

    def beat(self, place: str) -> None:
        """Report that this rank has reached `place` and does not hang."""

    def stop_requested(self) -> bool:
        """Return whether the driver has asked the group to save its state and end."""

    def waiting(self) -> AbstractContextManager[None]:
        """Mark a block in which this rank waits for others, so that it does not count as hung."""


# None outside of a worker group.
_channel: DriverChannel | None = None


def connect(channel: DriverChannel | None) -> None:
    """Set this process's channel to the driver; None for none."""
    global _channel
    _channel = channel


@dataclass(frozen=True)
class Rank:
    """One rank of a worker group."""

    rank: int
    world_size: int
    device: torch.device
    attempt: int = 0  # starts of this stage's groups before the present one

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of forward and backward."""
        return torch.bfloat16 if self.device.type == "cuda" else torch.float32

    def all_reduce_sum(self, values: torch.Tensor) -> torch.Tensor:
        """Return the sum of `values` over all ranks, on every rank; in place if several."""
        if self.world_size > 1:
            with waiting():
                dist.all_reduce(values)
        return values

    def barrier(self) -> None:
        """Wait for all ranks."""
        if self.world_size > 1:
            with waiting():
                dist.barrier()

    def broadcast(self, value: Any) -> Any:
        """Return rank 0's `value` (small, picklable) on every rank."""
        if self.world_size == 1:
            return value
        box = [value]
        with waiting():
            dist.broadcast_object_list(box, src=0)
        return box[0]

    def say(self, text: str) -> None:
        """Print a line on the driver's terminal, with this rank and its process id."""
        line = f"rank {self.rank} of {self.world_size} (pid {os.getpid()}): {text}"
        if _channel is None:
            print(line, flush=True)
        else:
            _channel.log_line(line)

    def report(self, done: int, total: int, *, tokens: int = 0, note: str = "") -> None:
        """Report how far the stage is, with `tokens` processed so far."""
        if _channel is not None:
            _channel.update(done, total, tokens, note)

    def beat(self, place: str) -> None:
        """Report that this rank has come to `place` and does not hang."""
        if _channel is not None:
            _channel.beat(place)

    def stop_requested(self) -> bool:
        """Return whether this rank has been asked to save its state and end.

        Other ranks may learn it a few seconds earlier or later.
        """
        return _channel is not None and _channel.stop_requested()

    def any_rank(self, flag: bool) -> bool:
        """Return whether `flag` holds on any rank. Collective."""
        return self.all_reduce_sum(torch.tensor(float(flag), device=self.device)).item() > 0

    def raise_if_stopping(self) -> None:
        """Raise GracefulStopError on all ranks if any was asked to stop. Collective."""
        if self.any_rank(self.stop_requested()):
            raise GracefulStopError


def waiting() -> AbstractContextManager[None]:
    """Mark a block in which this rank waits for others, so that it does not count as hung."""
    return nullcontext() if _channel is None else _channel.waiting()


def single_process_rank() -> Rank:
    """Return a rank for a command without workers: on the GPU if there is one."""
    return Rank(0, 1, torch.device("cuda" if torch.cuda.is_available() else "cpu"))


def current_rank() -> Rank:
    """Return the rank of this process; outside of a worker group, a group of one."""
    if not dist.is_initialized():
        return Rank(0, 1, torch.device("cpu"))
    if dist.get_backend() == "nccl":
        device = torch.device("cuda", torch.cuda.current_device())
    else:
        device = torch.device("cpu")
    attempt = 0 if _channel is None else _channel.attempt
    return Rank(dist.get_rank(), dist.get_world_size(), device, attempt)
