"""Random sampling, held against its definition and against many draws."""

import numpy as np
import pytest
import torch
from torch import Tensor

from kdscale.cache.codecs.id_bytes import from_bytes, id_bytes
from kdscale.cache.codecs.sample import Sample
from kdscale.types import SparseTargets


def random_uniforms(count: int, draws: int, seed: int = 5) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(count, draws, generator=generator, dtype=torch.float64)


def zipf(vocab: int, power: float = 1.0) -> Tensor:
    order = torch.randperm(vocab, generator=torch.Generator().manual_seed(0))
    return -power * torch.arange(1, vocab + 1, dtype=torch.float32).log()[order]


def through(codec: Sample, logits: Tensor, uniforms: Tensor) -> SparseTargets:
    return codec.decode(codec.encode(logits.expand(len(uniforms), -1), uniforms).payload)


def reference(logits: Tensor, uniforms: Tensor, tau: float) -> list[tuple[int, float]]:
    """One position, draw by draw, in float64: sorted (id, probability)."""
    p = logits.double().softmax(-1).numpy()
    q = p**tau / (p**tau).sum()
    edges = q.cumsum()
    drawn = [int(np.searchsorted(edges, u * edges[-1], side="right")) for u in uniforms.numpy()]
    return sorted((i, float(p[i] / q[i]) / len(drawn)) for i in drawn)


@pytest.mark.parametrize("tau", [1.0, 0.6, 1.3])
@pytest.mark.parametrize("vocab", [7, 128, 129, 3000])
def test_draws_are_those_of_the_definition(vocab: int, tau: float) -> None:
    logits = torch.randn(25, vocab, generator=torch.Generator().manual_seed(1)) * 2
    uniforms = random_uniforms(25, 40)
    codec = Sample(40, tau, vocab)
    targets = codec.decode(codec.encode(logits, uniforms).payload)
    for row in range(25):
        ids, probs = zip(*reference(logits[row], uniforms[row], tau), strict=True)
        assert targets.ids[row].tolist() == list(ids)
        assert targets.probs[row].tolist() == pytest.approx(probs, rel=2.0**-10)


@pytest.mark.parametrize("tau", [1.0, 0.6, 1.3])
def test_mean_over_a_grid_is_p_on_a_tiny_vocabulary(tau: float) -> None:
    """Uniforms spread evenly hit each id its due number of times: no more than one off."""
    p = torch.tensor([0.5, 0.01, 0.25, 0.0, 0.24])
    grid = ((torch.arange(10_000, dtype=torch.float64) + 0.5) / 10_000).view(100, 100)
    targets = through(Sample(100, tau, 5), p.log(), grid)
    mean = torch.zeros(5, dtype=torch.float64)
    mean.index_add_(0, targets.ids.flatten(), targets.probs.flatten().double())
    # One hit carries a weight of at most 6 here; float16 keeps 11 bits of it.
    assert torch.allclose(mean / 100, p.double(), atol=6 / 10_000, rtol=2.0**-11)
    assert (targets.ids != 3).all()


@pytest.mark.parametrize("tau", [1.0, 0.8, 1.2])
def test_random_uniforms_are_unbiased_within_five_standard_errors(tau: float) -> None:
    logits = zipf(3000)
    p = logits.double().softmax(-1)
    sets = torch.nn.functional.one_hot(torch.arange(3000) % 13, 13).double()
    top = torch.nn.functional.one_hot(p.topk(5).indices, 3000).double().T
    sets = torch.cat([sets, top], dim=1)
    targets = through(Sample(50, tau, 3000), logits, random_uniforms(2000, 50))
    masses = (targets.probs.double()[..., None] * sets[targets.ids]).sum(1)
    error = masses.mean(0) - p @ sets
    standard = masses.std(0) / len(masses) ** 0.5
    # float16 weights may be off by 2^-11 each.
    assert (error.abs() <= 5 * standard + (p @ sets) * 2.0**-11 * (tau != 1)).all()


def test_a_count_is_how_often_an_id_stands() -> None:
    logits = torch.tensor([0.5, 0.5, 1e-30]).log()
    targets = through(Sample(50, 1.0, 3), logits, random_uniforms(200, 50))
    assert (targets.ids.diff(dim=-1) >= 0).all()
    assert torch.allclose(targets.probs.sum(-1), torch.ones(200))
    ones = (targets.ids == 1).sum(-1).double()
    # Binomial(50, 1/2).
    assert abs(ones.mean().item() - 25) < 5 * (12.5 / 200) ** 0.5
    assert ones.var().item() == pytest.approx(12.5, rel=0.4)


def test_weighted_targets_are_not_normalised_and_sum_to_one_on_average() -> None:
    sums = through(Sample(20, 0.5, 500), zipf(500, 1.5), random_uniforms(3000, 20)).probs.sum(-1)
    assert sums.std() > 0.1
    assert abs(sums.mean().item() - 1) < 5 * sums.std().item() / 3000**0.5 + 2.0**-11


@pytest.mark.parametrize("u", [0.0, 1 - 2.0**-53])
def test_the_ends_of_the_running_sum_fall_on_ids_with_mass(u: float) -> None:
    logits = torch.full((50, 1000), -torch.inf)
    logits[:, 300:640] = torch.randn(50, 340, generator=torch.Generator().manual_seed(0))
    codec = Sample(3, 1.0, 1000)
    uniforms = torch.full((50, 3), u, dtype=torch.float64)
    ids = codec.decode(codec.encode(logits, uniforms).payload).ids
    assert (ids == (300 if u == 0 else 639)).all()


def test_weights_beyond_float16_are_cut() -> None:
    """Where tau is near 0, one of 2^17 ids with all the mass is drawn once in 2^17 times."""
    vocab = 1 << 17
    logits = torch.zeros(1, vocab)
    logits[0, 9] = 60.0
    at = torch.full((1, 2), 9.5 / vocab, dtype=torch.float64)
    codec = Sample(2, 1e-9, vocab)
    targets = codec.decode(codec.encode(logits, at).payload)
    assert targets.ids.tolist() == [[9, 9]]
    assert targets.probs.tolist() == [[65504 / 2, 65504 / 2]]


@pytest.mark.parametrize(("tau", "prefix", "ordered"), [(1.0, 0, 0), (0.9, 18, 9)])
def test_what_packing_at_rest_needs_to_know(tau: float, prefix: int, ordered: int) -> None:
    codec = Sample(9, tau, 300)
    assert (codec.prefix_bytes, codec.k, codec.vocab_size, codec.streams) == (prefix, 9, 300, 9)
    assert codec.bytes_per_position == prefix + 18
    payload = codec.encode(zipf(300).expand(4, -1), random_uniforms(4, 9)).payload
    assert codec.ordered_ids(payload).tolist() == [ordered] * 4
    ids = from_bytes(payload[:, codec.prefix_bytes :], id_bytes(300))
    assert torch.equal(ids, codec.decode(payload).ids)
