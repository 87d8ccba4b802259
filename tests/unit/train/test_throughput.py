"""Rates by a clock that the test sets, FLOPs of devices, and memory of this process."""

import time
from collections.abc import Iterator

import pytest
import torch

from kdscale.distributed.rank import Rank
from kdscale.train import throughput
from kdscale.train.throughput import (
    DeviceTimer,
    Throughput,
    model_flops_utilisation,
    peak_flops,
    peak_memory,
    training_flops,
)

CPU = Rank(0, 1, torch.device("cpu"))


class Clock:
    """Seconds that pass only where a test says so."""

    def __init__(self) -> None:
        self.now = 100.0

    def perf_counter(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    found = Clock()
    monkeypatch.setattr(throughput, "time", found)
    return found


def test_rates_are_of_steps_alone_and_since_the_last_line(clock: Clock) -> None:
    def batches() -> Iterator[str]:
        for name in ("a", "b", "c"):
            clock.now += 0.5
            yield name

    steps = batches()
    found = Throughput(CPU, flops=60)
    for name in ("a", "b"):
        assert found.next_of(steps) == name
        clock.now += 1.5
        found.end_step(100)
        clock.now += 60  # a validation
    metrics = found.metrics()
    assert metrics["tokens_per_second"] == pytest.approx(200 / 4)
    assert metrics["data_wait_share"] == pytest.approx(1 / 4)
    assert "mfu" not in metrics

    found.next_of(steps)
    clock.now += 9.5
    found.end_step(30)
    assert found.metrics()["tokens_per_second"] == pytest.approx(3)


def test_mfu_on_a_known_gpu_and_none_on_an_unknown(
    clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(throughput, "peak_memory", lambda device: 3 * 2**30)
    name = "NVIDIA A100-SXM4-80GB"
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: name)
    worker = Rank(0, 4, torch.device("cuda", 0))
    found = Throughput(worker, flops=6 * 10**9)
    for known in (True, False):
        found.next_of(iter([0]))
        clock.now += 2.0
        found.end_step(80_000)
        metrics = found.metrics()
        assert metrics["memory_gib"] == 3
        # 10,000 targets a second and device, 6e9 FLOPs each, of 312e12.
        assert metrics.get("mfu") == (pytest.approx(6e13 / 312e12) if known else None)
        name = "Some Other GPU"


def test_flops_formula() -> None:
    assert model_flops_utilisation(42 * 10**9, 1000.0, 84e12) == pytest.approx(0.5)


def test_frozen_parameters_need_no_gradient_of_their_own() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(3, 5), torch.nn.Linear(5, 2, bias=False))
    assert training_flops(model) == 6 * (20 + 10)
    model[0].requires_grad_(False)
    assert training_flops(model) == 4 * 20 + 6 * 10


@pytest.mark.parametrize(
    ("device", "flops"),
    [
        ("NVIDIA H100 80GB HBM3", 989e12),
        ("NVIDIA H100 PCIe", 756e12),
        ("NVIDIA H100 NVL", 835e12),
        ("NVIDIA H200", 989e12),
        ("NVIDIA GH200 480GB", 989e12),
        ("NVIDIA A100-SXM4-40GB", 312e12),
        ("NVIDIA A100 80GB PCIe", 312e12),
        ("NVIDIA A100-SXM4-40GB MIG 1g.5gb", None),
        ("NVIDIA A10G", 70e12),
        ("NVIDIA A10", 125e12),
        ("NVIDIA L4", 121e12),
        ("NVIDIA L40S", 362e12),
        ("NVIDIA L40", None),
        ("Tesla V100-SXM2-16GB", None),
    ],
)
def test_peak_flops_by_name(device: str, flops: float | None) -> None:
    assert peak_flops(device) == flops


def test_peak_memory_has_bytes_for_its_unit_and_stays_at_the_peak() -> None:
    before = peak_memory(torch.device("cpu"))
    assert 50 * 2**20 < before < 2**40
    block = torch.ones(256 * 2**20, dtype=torch.uint8)
    held = peak_memory(torch.device("cpu"))
    assert held >= 256 * 2**20
    del block
    assert peak_memory(torch.device("cpu")) >= held


def test_a_device_timer_adds_up_what_runs_and_nothing_else() -> None:
    timer = DeviceTimer(torch.device("cpu"))
    assert timer.seconds == 0
    started = time.perf_counter()
    inside = 0.0
    for _ in range(3):
        before = time.perf_counter()
        with timer.running():
            torch.ones(100, 100) @ torch.ones(100, 100)
        inside += time.perf_counter() - before
        torch.ones(100, 100) @ torch.ones(100, 100)
    assert 0 < timer.seconds <= inside < time.perf_counter() - started
