"""Systematic sampling, held against its definition."""

import numpy as np
import pytest
import torch
from torch import Tensor

from kdscale.cache.codecs.systematic import Systematic
from kdscale.types import SparseTargets

SHAPES = {
    "peaked": torch.randn(1000, generator=torch.Generator().manual_seed(3)) * 6,
    "flat": torch.zeros(777),
    "large": -torch.arange(1, (1 << 17) + 1001, dtype=torch.float32).log(),
    "one id": torch.tensor([0.0, 0.0, 1.0]).log(),
    "mass in late blocks only": torch.full((300,), -torch.inf).scatter(
        0, torch.tensor([200, 299]), 0.0
    ),
}


def through(codec: Systematic, logits: Tensor, uniforms: Tensor) -> SparseTargets:
    expanded = logits.expand(len(uniforms), -1)
    return codec.decode(codec.encode(expanded, uniforms[:, None]).payload)


def counts(targets: SparseTargets, vocab: int) -> Tensor:
    """[P, V]: how often each id stands."""
    found = torch.zeros(len(targets.ids), vocab, dtype=torch.float64)
    return found.scatter_add_(-1, targets.ids, torch.ones_like(targets.ids, dtype=torch.float64))


@pytest.mark.parametrize("draws", [1, 7, 24])
@pytest.mark.parametrize("logits", SHAPES.values(), ids=SHAPES.keys())
def test_an_id_stands_for_its_share_of_the_draws_rounded_down_or_up(
    logits: Tensor, draws: int
) -> None:
    uniforms = torch.tensor([0.0, 0.2, 0.5, 1 - 2.0**-53], dtype=torch.float64)
    targets = through(Systematic(draws, len(logits)), logits, uniforms)
    assert torch.equal(targets.probs, torch.full_like(targets.probs, 1 / draws))
    assert targets.ghost is None
    due = draws * logits.double().softmax(-1)
    # Sums of float32 may move a point across the border of two ids.
    assert ((counts(targets, len(logits)) - due).abs() < 1 + 1e-3).all()
    assert not torch.isinf(logits[targets.ids]).any()


@pytest.mark.parametrize("vocab", [7, 128, 129, 3000])
def test_draws_are_those_of_the_definition(vocab: int) -> None:
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(25, vocab, generator=generator) * 2
    uniforms = torch.rand(25, 1, generator=generator, dtype=torch.float64)
    codec = Systematic(24, vocab)
    found = codec.decode(codec.encode(logits, uniforms).payload)
    for row in range(25):
        edges = logits[row].double().softmax(-1).numpy().cumsum()
        points = [(float(uniforms[row]) + j) / 24 * edges[-1] for j in range(24)]
        expected = [int(np.searchsorted(edges, point, side="right")) for point in points]
        assert found.ids[row].tolist() == expected


@pytest.mark.parametrize("logits", SHAPES.values(), ids=SHAPES.keys())
def test_mean_over_a_grid_of_uniforms_is_p(logits: Tensor) -> None:
    """An id's share of the grid is its probability, but for one point of the grid."""
    grid = (torch.arange(64, dtype=torch.float64) + 0.5) / 64
    draws = 10
    targets = through(Systematic(draws, len(logits)), logits, grid)
    mean = counts(targets, len(logits)).mean(0) / draws
    assert (mean - logits.double().softmax(-1)).abs().max() <= 1 / (64 * draws) + 1e-6


def test_one_uniform_sets_all_draws() -> None:
    codec = Systematic(24, 1000)
    assert codec.streams == 1
    assert codec.bytes_per_position == 24 * 10 // 8
    assert codec.describe() == {"kind": "systematic", "draws": 24, "vocab_size": 1000}
