"""Figures of a training or capture: speed, waiting, utilisation, memory.

Only steps are timed: validations and checkpoints between them are not in any rate. The end of a
step reads the gradient's norm, so that a GPU has finished by then and needs no further wait.
"""

import resource
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypeVar

import torch

from kdscale.distributed.rank import Rank

ItemT = TypeVar("ItemT")

# Dense bfloat16 FLOPs a second from NVIDIA's data sheets. The first name that stands in what torch
# calls the device counts.
_PEAK_FLOPS = {
    "B200": 2.25e15,
    "GH200": 989e12,
    "H200 NVL": 835e12,
    "H200": 989e12,
    "H100 PCIe": 756e12,
    "H100 NVL": 835e12,
    "H100": 989e12,
    "A100": 312e12,
    "L40S": 362e12,
    "L4": 121e12,
    "A10G": 70e12,
    "A10": 125e12,
}


class Throughput:
    """Figures of the steps since the last `metrics`, on rank 0."""

    def __init__(self, worker: Rank, flops: int) -> None:
        """`flops` are those of training on a token, see `training_flops`."""
        self._worker = worker
        self._flops = flops
        self._restart()

    def next_of(self, batches: Iterator[ItemT]) -> ItemT:
        """Start a step by taking its batch."""
        self._started = time.perf_counter()
        batch = next(batches)
        self._waited += time.perf_counter() - self._started
        return batch

    def end_step(self, tokens: int) -> None:
        """End the step, which had `tokens` targets on all ranks."""
        self._seconds += time.perf_counter() - self._started
        self._tokens += tokens

    def metrics(self) -> dict[str, float]:
        """Return the figures since the last call, and start again.

        tokens_per_second (targets, over all ranks), data_wait_share (of the time, waited for
        batches), memory_gib (peak) and, on a GPU that is known, mfu.
        """
        speed = self._tokens / self._seconds
        found = {
            "tokens_per_second": speed,
            "data_wait_share": self._waited / self._seconds,
            "memory_gib": peak_memory(self._worker.device) / 2**30,
        }
        peak = None
        if self._worker.device.type == "cuda":
            peak = peak_flops(torch.cuda.get_device_name(self._worker.device))
        if peak is not None:
            each = speed / self._worker.world_size
            found["mfu"] = model_flops_utilisation(self._flops, each, peak)
        self._restart()
        return found

    def _restart(self) -> None:
        self._started = self._waited = self._seconds = 0.0
        self._tokens = 0


class DeviceTimer:
    """Time that a device computes what is launched inside `running`, measured without waiting.

    On a GPU a launch returns long before the work is done, so events in its stream take the time.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._seconds = 0.0
        self._open: list[tuple[torch.cuda.Event, torch.cuda.Event]] = []

    @contextmanager
    def running(self) -> Iterator[None]:
        """Time one computation."""
        if self._device.type != "cuda":
            started = time.perf_counter()
            yield
            self._seconds += time.perf_counter() - started
            return
        stream = torch.cuda.current_stream(self._device)
        start = stream.record_event(torch.cuda.Event(enable_timing=True))
        yield
        end = stream.record_event(torch.cuda.Event(enable_timing=True))
        self._open.append((start, end))

    @property
    def seconds(self) -> float:
        """Seconds of all computations that are done."""
        while self._open and self._open[0][1].query():
            start, end = self._open.pop(0)
            self._seconds += start.elapsed_time(end) / 1000
        return self._seconds


def training_flops(model: torch.nn.Module) -> int:
    """Return the FLOPs of training `model` on a token: 6 N, of frozen parameters 4 N.

    2 N forward and 4 N backward, N being all parameters (Kaplan et al. 2020, arXiv:2001.08361);
    frozen ones need no gradient of their own. For simplicity what attention adds over the sequence
    is not counted, and an embedding that only looks up counts as if it multiplied.
    """
    return sum(
        (6 if each.requires_grad else 4) * getattr(each, "ds_numel", each.numel())
        for each in model.parameters()
    )


def model_flops_utilisation(flops: int, tokens_per_second: float, peak: float) -> float:
    """Return the share of a device's `peak` FLOPs a second that a training needs.

    A token takes `flops`; the device has `tokens_per_second` targets. As in Chowdhery et al. 2022
    (PaLM, arXiv:2204.02311, appendix B), activations computed again are not counted; nor, for
    simplicity, is padding.
    """
    return flops * tokens_per_second / peak


def peak_flops(device: str) -> float | None:
    """Return the dense bfloat16 FLOPs a second of a device by its name.

    None for an unknown one, and for a slice of one (MIG).
    """
    words = f" {device.replace('-', ' ')} "
    if " MIG " in words:
        return None
    return next((flops for name, flops in _PEAK_FLOPS.items() if f" {name} " in words), None)


def peak_memory(device: torch.device) -> int:
    """Return the most bytes that this process has held so far.

    On a GPU what torch allocated there, else its resident set.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024
