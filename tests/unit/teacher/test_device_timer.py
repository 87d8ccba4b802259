"""Time is counted inside `running` alone."""

import time

import torch

from kdscale.teacher.device_timer import DeviceClock


def test_adds_up_what_runs_and_nothing_else() -> None:
    clock = DeviceClock(torch.device("cpu"))
    assert clock.seconds == 0
    started = time.perf_counter()
    inside = 0.0
    for _ in range(3):
        before = time.perf_counter()
        with clock.running():
            torch.ones(100, 100) @ torch.ones(100, 100)
        inside += time.perf_counter() - before
        torch.ones(100, 100) @ torch.ones(100, 100)
    assert 0 < clock.seconds <= inside < time.perf_counter() - started
