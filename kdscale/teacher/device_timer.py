"""How long a device computes, without waiting for it."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch


class DeviceClock:
    """Adds up the time that a device spends on what is launched inside `running`.

    On a GPU a launch returns long before the work is done, so events in its stream take the time.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._seconds = 0.0
        self._open: list[tuple[torch.cuda.Event, torch.cuda.Event]] = []

    @contextmanager
    def running(self) -> Iterator[None]:
        """Around one computation."""
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
        """Of all computations that are done."""
        while self._open and self._open[0][1].query():
            start, end = self._open.pop(0)
            self._seconds += start.elapsed_time(end) / 1000
        return self._seconds
