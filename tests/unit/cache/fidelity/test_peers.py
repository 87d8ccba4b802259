"""The rivals' formats in benchmarks/: sizes as documented, curves against numpy's least squares."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from benchmarks.codec_peers import Largest, Megatron, budget_pick, recommended

VOCAB = 49_152


@pytest.fixture(scope="module")
def log_probs() -> torch.Tensor:
    logits = torch.randn(20, VOCAB, generator=torch.Generator().manual_seed(0)) * 3
    return logits.log_softmax(-1)


def largest(log_probs: torch.Tensor, k: int) -> Largest:
    return Largest(*log_probs.topk(k, dim=-1))


def test_sizes_are_those_of_the_readme() -> None:
    assert recommended(1 << 16).bytes_per_position == 312
    assert recommended(128_256).bytes_per_position == 328
    assert budget_pick(1 << 16).bytes_per_position == 114
    assert Megatron(128).bytes_per_position == 528


def test_the_curve_is_the_least_squares_fit(log_probs: torch.Tensor) -> None:
    codec = recommended(VOCAB)
    values = largest(log_probs, codec.k).values
    found = codec.restore(values).double().numpy()
    t = np.arange(112.0)
    curves = np.stack([t**0, t, t**2, t**3, t**4, np.sqrt(t)], axis=1)
    tail = values[:, 16:].double().numpy().T
    coefficients = np.linalg.lstsq(curves, tail, rcond=None)[0]
    assert found[:, 16:] == pytest.approx((curves @ coefficients).T, abs=1e-3)
    exact = values[:, :16].bfloat16().double().numpy()
    assert np.array_equal(found[:, :16], exact)


def test_the_fit_in_float32_is_far_off(log_probs: torch.Tensor) -> None:
    """As in the original's own code, where log-probabilities come as float32."""
    codec = recommended(VOCAB)
    values = largest(log_probs, codec.k).values
    near = (codec.restore(values) - values).abs().mean()
    far = (replace(codec, fit=torch.float32).restore(values) - values).abs().mean()
    assert near < 0.05
    assert far > 5 * near


def test_mass_that_is_left_over(log_probs: torch.Tensor) -> None:
    codec = recommended(VOCAB)
    kept = largest(log_probs, codec.k)
    zero, ghost = codec.targets(kept), replace(codec, ghost=True).targets(kept)
    assert zero.ghost is None
    assert ghost.ghost is not None
    mass = codec.restore(kept.values).exp().sum(-1)
    assert torch.allclose(zero.probs.sum(-1), torch.ones(20), atol=1e-5)
    assert torch.allclose(zero.probs * mass[:, None], ghost.probs, atol=1e-5)
    assert torch.allclose(ghost.ghost, 1 - mass, atol=1e-5)
    assert torch.equal(zero.ids, kept.indices)


def test_megatron_rounds_to_float16_and_keeps_a_bucket(log_probs: torch.Tensor) -> None:
    codec = Megatron(64)
    kept = largest(log_probs, codec.k)
    found = codec.targets(kept)
    assert found.ghost is not None
    assert torch.allclose(found.probs, kept.values.exp(), rtol=0.01)
    assert torch.allclose(found.probs.sum(-1) + found.ghost, torch.ones(20), atol=1e-5)
    assert 0.5 * codec.bytes_per_position < codec.at_rest([kept]) < 1.1 * codec.bytes_per_position
