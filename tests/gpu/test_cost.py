"""Bytes, FLOPs and kernels of single operators, counted by hand."""

import pytest
import torch

from benchmarks.gpu_cost import Cost, cost_of
from kdscale.cache.codecs import kernels
from kdscale.errors import KdscaleError
from kdscale.plan.hardware import find_hardware
from kdscale.plan.roofline import Rates
from tests.gpu.fake_cuda import CUDA, Record

RATES = Rates(products=100.0, float32=10.0, bandwidth=1000.0, launch=0.5)


def cost(record: Record) -> Cost:
    found = cost_of(record, RATES)
    record.clear()
    return found


def test_products(record: Record) -> None:
    left, right = (torch.empty(4, 8, device=CUDA, dtype=torch.bfloat16) for _ in range(2))
    record.clear()
    left @ right.T
    # Two factors of 64 bytes, 32 bytes of result.
    assert cost(record) == Cost(1, 160, 256, 2.56, 2.56)
    left.float() @ right.float().T
    found = cost(record)
    assert (found.kernels, found.flops, found.products) == (3, 256, 25.6)
    assert found.nbytes == 2 * (64 + 128) + 2 * 128 + 64


def test_memory_is_counted_as_it_is_touched(record: Record) -> None:
    logits, row = torch.empty(4, 1000, device=CUDA), torch.empty(1000, device=CUDA)
    out, ids = torch.empty(4, 1000, device=CUDA), torch.empty(4, 2, device=CUDA).long()
    record.clear()
    torch.softmax(logits, -1, out=out)
    assert cost(record).nbytes == 3 * 16_000 + 16_000
    logits.add_(row.expand(4, 1000))
    assert cost(record).nbytes == 2 * 16_000 + 4000
    logits.gather(-1, ids)
    assert cost(record).nbytes == 2 * 32 + 64
    logits.scatter_add_(-1, ids, torch.ones(4, 2, device=CUDA))
    assert cost(record).nbytes == 32 + 32 + 64 + 2 * 64
    out.copy_(logits[:, :1000].view(4, 1000))
    assert cost(record).nbytes == 2 * 16_000
    assert torch.empty(5, device=CUDA).view(5, 1).expand(5, 9).T.shape == (9, 5)
    assert cost(record) == Cost()


def test_an_encoder_reads_the_logits_once(record: Record) -> None:
    logits = torch.empty(10, 300, device=CUDA, dtype=torch.bfloat16)[:, :257]
    uniforms = torch.empty(10, 2, device=CUDA, dtype=torch.float64)
    record.clear()
    kernels.varopt(logits, uniforms, 5, 2, 254, 1.0)
    found = cost(record)
    sums = 10 * 3 * (3 * 4 * 2 + 8)
    assert found.nbytes == 10 * (257 * 2 + 7 * 128 * 2 + 2 * 8 + 7 * 4 + 2 * 4) + sums
    assert found.kernels == 2


def test_small_kernels_take_their_launch(record: Record) -> None:
    small = torch.empty(1, device=CUDA)
    record.clear()
    small.neg().abs()
    assert cost(record).seconds == 1.0


def test_rates_are_those_of_the_table() -> None:
    found = Rates.of(find_hardware("H100"))
    assert found.products == pytest.approx(700e12)
    assert found.float32 == pytest.approx(50e12, rel=0.01)
    assert found.bandwidth == pytest.approx(3.35e12 * 0.85)
    with pytest.raises(KdscaleError, match="cpu cannot be modelled"):
        Rates.of(find_hardware("cpu"))
