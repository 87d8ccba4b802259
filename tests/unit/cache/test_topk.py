"""`topk` keeps the largest probabilities within its rounding, and the mass that is left over."""

import pytest
import torch

from kdscale.cache.codecs.topk import Topk
from kdscale.types import SparseTargets


def some_logits(positions: int, vocab: int) -> torch.Tensor:
    return torch.randn(positions, vocab, generator=torch.Generator().manual_seed(1)) * 3


def through(codec: Topk, logits: torch.Tensor) -> SparseTargets:
    nothing_drawn = torch.empty(len(logits), 0, dtype=torch.float64)
    payload = codec.encode(logits, nothing_drawn).payload
    assert payload.shape == (len(logits), codec.bytes_per_position)
    return codec.decode(payload)


@pytest.mark.parametrize(("bits", "size", "error"), [(16, 10 + 10, 0.006), (8, 10 + 5, 0.032)])
def test_keeps_the_largest_and_the_mass_left_over(bits: int, size: int, error: float) -> None:
    codec = Topk(5, bits, 300)
    assert codec.bytes_per_position == size
    targets = through(codec, some_logits(40, 300))
    exact = some_logits(40, 300).softmax(-1).topk(5)
    assert torch.equal(targets.ids, exact.indices)
    assert torch.allclose(targets.probs, exact.values, rtol=error, atol=0)
    assert targets.ghost is not None
    assert torch.allclose(targets.ghost, 1 - exact.values.sum(-1), atol=error)


@pytest.mark.parametrize("bits", [8, 16])
def test_mass_is_never_more_than_one_and_ghost_never_negative(bits: int) -> None:
    targets = through(Topk(300, bits, 300), some_logits(200, 300))
    assert targets.ghost is not None
    assert (targets.ghost >= 0).all()
    assert torch.allclose(targets.probs.sum(-1) + targets.ghost, torch.ones(200), atol=1e-6)
    raw = some_logits(200, 300).softmax(-1)
    found = torch.zeros(200, 300).scatter_(-1, targets.ids, targets.probs)
    assert (found - raw).abs().max() < (0.04 if bits == 8 else 0.002)


@pytest.mark.parametrize("bits", [8, 16])
def test_ids_without_mass_stay_without(bits: int) -> None:
    logits = torch.full((1, 40), -torch.inf)
    logits[0, [3, 30]] = torch.tensor([0.75, 0.25]).log()
    targets = through(Topk(4, bits, 40), logits)
    assert targets.ids[0, :2].tolist() == [3, 30]
    assert targets.probs[0, 2:].tolist() == [0, 0]
    assert targets.probs[0, :2].tolist() == pytest.approx([0.75, 0.25], rel=0.032)


def test_largest_probabilities_far_apart_and_side_by_side() -> None:
    """All in one block of the vocabulary, and each in another one."""
    for ids in (torch.arange(700, 712), torch.arange(12) * 400 + 3):
        logits = torch.zeros(1, 5000)
        logits[0, ids] = torch.linspace(9, 6, 12)
        assert torch.equal(through(Topk(12, 16, 5000), logits).ids[0], ids)
