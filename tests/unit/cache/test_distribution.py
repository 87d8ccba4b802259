"""The pass over the vocabulary: how logits come in, and where an id has no probability."""

import pytest
import torch

from kdscale.cache.codecs.distribution import Scratch, distribution, without_nowhere
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


def test_a_product_is_nothing_where_an_id_has_no_probability() -> None:
    logits = torch.randn(3, 40)
    logits[0, 3:] = -torch.inf
    logits[1, 7] = -torch.inf
    probs = logits.softmax(-1)
    exact = -torch.special.entr(probs.double()).sum(-1)
    products = without_nowhere(logits * probs)
    entropy = logits.logsumexp(-1) - products.sum(-1)
    torch.testing.assert_close(entropy.double(), -exact, rtol=1e-5, atol=1e-6)
