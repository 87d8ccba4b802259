"""The instrument itself: what it sees, and what it does not let pass."""

import pytest
import torch

from tests.gpu.fake_cuda import CUDA, MixedDevicesError, Record


def test_it_sees_every_wait_of_the_host(record: Record) -> None:
    values, mask = torch.empty(4, 3, device=CUDA), torch.empty(4, 3, device=CUDA, dtype=torch.bool)
    assert values.sum().item() == 1.0
    assert values[mask].shape == (12,)
    assert mask.nonzero().shape == (12, 2)
    values.cpu()
    torch.zeros(2).to(CUDA)
    values[mask] = torch.empty(12, device=CUDA)
    assert dict(record.syncs) == {
        ("a number read on the host", "?"): 1,
        ("a boolean index", "?"): 2,
        ("nonzero, whose size depends on values", "?"): 1,
        ("a copy from cuda to cpu", "?"): 1,
        ("a copy from cpu to cuda", "?"): 1,
    }


def test_what_waits_for_nothing_is_no_sync(record: Record) -> None:
    values = torch.empty(4, 3, device=CUDA)
    torch.zeros(2).to(CUDA, non_blocking=True)
    values *= torch.tensor(2.0)
    torch.where(values > 0, values, 0.0).argmax()
    # A masked fill.
    values[values > 0] = 0.0
    assert not record.syncs


def test_tensors_of_two_devices_are_refused(record: Record) -> None:
    with pytest.raises(MixedDevicesError, match=r"cuda \(4, 3\), cpu \(3,\)"):
        torch.empty(4, 3, device=CUDA) + torch.zeros(3)
    with pytest.raises(MixedDevicesError):
        torch.empty(4, 3, device=CUDA)[torch.zeros(2, dtype=torch.int64)]


def test_autocast_is_that_of_cuda(record: Record) -> None:
    hidden, weight = torch.empty(6, 4, device=CUDA), torch.empty(8, 4, device=CUDA)
    with torch.autocast("cuda", torch.bfloat16):
        assert (hidden @ weight.T).dtype == torch.bfloat16
    assert record.products(torch.float32) == []
    # What writes to a tensor given is left as it is.
    with torch.autocast("cuda", torch.bfloat16):
        torch.mm(hidden, weight.T, out=torch.empty(6, 8, device=CUDA))
    assert record.products(torch.float32) == ["mm (6, 4) (4, 8) at ?"]
