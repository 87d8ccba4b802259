"""The pass over the vocabulary: how logits come in, and where an id has no probability."""

import pytest
import torch

from kdscale.cache.codecs.distribution import Scratch, distribution, entropy_of
from kdscale.cache.codecs.vocab_blocks import BLOCK


@pytest.mark.parametrize("vocab_size", [BLOCK, BLOCK + 2])
@pytest.mark.parametrize("temperature", [1.0, 1.7])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_logits_are_cast_divided_and_padded(
    vocab_size: int, temperature: float, dtype: torch.dtype
) -> None:
    given = torch.randn(5, vocab_size + 3).to(dtype)[:, :vocab_size]
    kept, scratch = given.clone(), Scratch(5, vocab_size, given.device)
    for rows in (given, given[:2]):
        found = scratch.padded(rows, temperature)
        expected = rows.float() / temperature
        assert torch.equal(found[:, :vocab_size], expected)
        assert found.shape[1] % BLOCK == 0
        assert not found[:, vocab_size:].softmax(-1).isnan().any()
        exact = expected.double().log_softmax(-1)
        p = distribution(rows, temperature, scratch)
        torch.testing.assert_close(
            p.entropy.double(), -(exact.exp() * exact).sum(-1), rtol=1e-5, atol=1e-6
        )
    assert torch.equal(given, kept)


def test_entropy_of_probabilities_that_sum_to_a_little_more_than_1() -> None:
    logits = 3 * torch.randn(3, 2 * BLOCK)
    logits[0, 3:] = -torch.inf
    logits[1, 7] = -torch.inf
    exact = torch.special.entr(logits.double().softmax(-1)).sum(-1, keepdim=True)
    probs = 1.001 * logits.softmax(-1)
    mass = probs.sum(-1, keepdim=True, dtype=torch.float64)
    torch.testing.assert_close(entropy_of(probs, mass), exact, rtol=1e-5, atol=1e-6)
    given = torch.empty_like(probs)
    assert torch.equal(entropy_of(probs, mass, given), entropy_of(probs, mass))


def test_the_largest_ids_are_listed() -> None:
    logits = torch.randn(4, 300)
    p = distribution(logits, 1.0, Scratch(4, 300, logits.device), 7)
    assert torch.equal(p.largest, logits.topk(7).indices)
