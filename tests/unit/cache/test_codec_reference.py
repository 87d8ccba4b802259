"""Every codec against float64: any vocabulary, any K, and logits that no model should give."""

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kdscale.cache.codecs import Codec, Encoded, make_codec
from kdscale.config.cache import CodecConfig, FullCodec, SampleCodec, TopkCodec, VaroptCodec
from kdscale.types import DenseTargets, SparseTargets

POSITIONS = 6


def few(logits: torch.Tensor, random: torch.Tensor) -> torch.Tensor:
    """Return some ids with mass, the others with none."""
    return logits.masked_fill(random > 0.1, -torch.inf)


def cliffs(logits: torch.Tensor, random: torch.Tensor) -> torch.Tensor:
    """Gaps that float32 has no probabilities for, each of another size."""
    return logits - 130 * (random * 4).floor()


def end(logits: torch.Tensor, random: torch.Tensor) -> torch.Tensor:
    """All mass among the last ids, which share a block with the padding."""
    logits = logits - 200
    logits[:, -5:] += 200
    return logits


LOGITS: dict[str, Callable[[torch.Tensor, torch.Tensor], torch.Tensor]] = {
    "usual": lambda logits, _: 3 * logits,
    "few": few,
    "cliffs": cliffs,
    "end": end,
    "equal": lambda logits, _: torch.zeros_like(logits),
    "two levels": lambda logits, random: (random > 0.5).float() * 7,
    "one": lambda logits, random: logits.index_fill(-1, torch.tensor([0]), 500.0),
    "masked": lambda logits, random: logits.masked_fill(
        random > 0.3, torch.finfo(torch.float32).min
    ),
    "far": lambda logits, _: logits - 1000,
}


def make_logits(kind: str, vocab: int, dtype: torch.dtype, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(POSITIONS, vocab, generator=generator)
    random = torch.rand(POSITIONS, vocab, generator=generator)
    logits = LOGITS[kind](logits, random)
    # No position without any mass.
    logits[:, seed % vocab] = logits.amax(-1).clamp_min(-1000.0)
    return logits.to(dtype)


def encode(codec: Codec, logits: torch.Tensor, seed: int) -> Encoded:
    generator = torch.Generator().manual_seed(seed)
    noise = torch.rand(len(logits), codec.streams, generator=generator, dtype=torch.float64)
    return codec.encode(logits, noise)


def check_topk(targets: SparseTargets, logits: torch.Tensor, bits: int) -> None:
    vocab, k = logits.shape[-1], targets.ids.shape[-1]
    assert (targets.ids < vocab).all()
    assert all(len(set(row)) == k for row in targets.ids.tolist())
    assert torch.equal(logits.gather(-1, targets.ids), logits.topk(k).values)
    log_p = logits.double().log_softmax(-1).gather(-1, targets.ids).clamp_min(-1e4)
    error = -log_p * 2.0**-11 + 5e-5 if bits == 16 else torch.full_like(log_p, 1 / 32 + 5e-5)
    low, high = ((log_p + sign * error).exp() for sign in (-1, 1))
    if bits == 8:
        low = low.masked_fill(log_p < -254 / 16, 0.0)
    # Where rounding lifts the sum above 1, or all ids are listed, they are divided by it.
    mass = high.sum(-1, keepdim=True).clamp_min(1)
    least = low.sum(-1, keepdim=True) if k == vocab else torch.ones_like(mass)
    assert (targets.probs >= low / mass - 1e-30).all()
    assert (targets.probs <= high / least + 1e-30).all()
    assert targets.ghost is not None
    if k == vocab:
        assert targets.ghost.max() < 1e-6
    total = targets.probs.double().sum(-1) + targets.ghost.double()
    torch.testing.assert_close(total, torch.ones_like(total), rtol=0, atol=1e-6)


def check_sampled(targets: SparseTargets, logits: torch.Tensor) -> None:
    assert (targets.ids < logits.shape[-1]).all()
    has_mass = logits.double().softmax(-1).gather(-1, targets.ids) > 0
    assert has_mass.logical_or(targets.probs == 0).all()


@settings(deadline=None, max_examples=300)
@given(
    kind=st.sampled_from(list(LOGITS)),
    vocab=st.sampled_from([1, 2, 33, 40, 127, 128, 129, 255, 256, 300, 513, 1000]),
    share=st.floats(0, 1),
    bits=st.sampled_from([8, 16]),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
    seed=st.integers(0, 999),
)
def test_topk_lists_the_largest_each_once(
    kind: str, vocab: int, share: float, bits: int, dtype: torch.dtype, seed: int
) -> None:
    config = TopkCodec.model_validate({"k": max(1, round(share * vocab)), "value_bits": bits})
    logits = make_logits(kind, vocab, dtype, seed)
    codec = make_codec(config, vocab)
    targets = codec.decode(encode(codec, logits, seed).payload)
    assert isinstance(targets, SparseTargets)
    check_topk(targets, logits.float(), bits)


@settings(deadline=None, max_examples=150)
@given(
    kind=st.sampled_from(list(LOGITS)),
    vocab=st.sampled_from([2, 33, 128, 129, 300, 1000]),
    share=st.floats(0, 1),
    tau=st.sampled_from([0.7, 1.0]),
    seed=st.integers(0, 999),
)
def test_samples_are_ids_that_have_mass(
    kind: str, vocab: int, share: float, tau: float, seed: int
) -> None:
    k = max(2, round(share * vocab))
    head = max(1, round(share * (k - 1)))
    logits = make_logits(kind, vocab, torch.float32, seed)
    for config in (VaroptCodec(k=k, head=head), SampleCodec(draws=k, tau=tau)):
        codec = make_codec(config, vocab)
        targets = codec.decode(encode(codec, logits, seed).payload)
        assert isinstance(targets, SparseTargets)
        check_sampled(targets, logits)


@pytest.mark.parametrize("kind", LOGITS)
@pytest.mark.parametrize("vocab", [40, 128, 1000])
def test_full_is_the_distribution(kind: str, vocab: int) -> None:
    logits = make_logits(kind, vocab, torch.float32, 3)
    codec = make_codec(FullCodec(), vocab)
    targets = codec.decode(encode(codec, logits, 3).payload)
    assert isinstance(targets, DenseTargets)
    exact = logits.double().log_softmax(-1)
    bound = exact.abs() * 2.0**-11 + 2e-3
    fits = (targets.log_probs - exact).abs() <= bound
    # What float16 has no logarithm of, 65,504 nats, is nothing.
    assert fits.logical_or((exact < -65_504) & (targets.log_probs == -torch.inf)).all()


@pytest.mark.parametrize("offset", [-100.0, 0.0, 100.0])
@pytest.mark.parametrize("vocab", [50_257, 262_144])
def test_statistics_of_a_large_vocabulary_are_exact(vocab: int, offset: float) -> None:
    """With one id that has most of the mass, at which a float32 sum loses the others."""
    generator = torch.Generator().manual_seed(vocab)
    logits = 1.5 * torch.randn(4, vocab, generator=generator)
    logits[:, 7] = logits.logsumexp(-1) + torch.tensor([-3.0, 0.0, 2.0, 7.0])
    logits[3, 1000:1010] = -torch.inf
    logits += offset
    configs: list[CodecConfig] = [VaroptCodec(), TopkCodec(k=20)]
    for config in configs:
        found = encode(make_codec(config, vocab), logits, 0)
        exact = logits.double()
        entropy = torch.special.entr(exact.softmax(-1)).sum(-1)
        assert (found.entropy - entropy).abs().max() < 1e-4
        assert (found.log_norm - exact.logsumexp(-1)).abs().max() < 2e-5


def test_weights_of_a_large_vocabulary_are_p_over_q() -> None:
    vocab, tau = 262_144, 0.8
    logits = torch.randn(8, vocab, generator=torch.Generator().manual_seed(0))
    logits[:, 7] = logits.logsumexp(-1) + torch.arange(8)
    codec = make_codec(SampleCodec(draws=20, tau=tau), vocab)
    targets = codec.decode(encode(codec, logits, 0).payload)
    assert isinstance(targets, SparseTargets)
    p, q = (each.double().softmax(-1).gather(-1, targets.ids) for each in (logits, logits * tau))
    # Float16 rounds by 2^-11 of it; over all draws that averages out.
    ratio = targets.probs * 20 / (p / q)
    assert (ratio.mean() - 1).abs() < 1e-4
    assert (ratio - 1).abs().max() < 6e-4
