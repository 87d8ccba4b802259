"""Triton's encoders on the CPU, by Triton's interpreter, against torch's and against float64.

`test_triton_encode.py` runs this file in a process of its own, where Triton is imported with
TRITON_INTERPRET=1: it looks at that only once.
"""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from kdscale.cache.codecs import Encoded, kernels
from kdscale.cache.codecs.varopt import Varopt
from kdscale.errors import KdscaleError
from tests.unit.cache.test_codec_reference import LOGITS, check_sampled, make_logits
from tests.unit.cache.test_varopt import (
    CODECS,
    SHAPES,
    draw,
    grid,
    mean_target,
    random_uniforms,
    threshold,
)

VOCABULARIES = (2, 3, 12, 75, 127, 128, 129, 1000, 2048, 2049, 20_011)
# Of those with theory, which the interpreter is slow for.
SOME_SHAPES = (
    *("peaked", "zipf", "nearly one hot", "more above tau than the head holds"),
    *("exact boundary", "mass in late blocks only", "as many ids as slots"),
)


@pytest.fixture(autouse=True)
def with_triton(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take the kernels."""
    monkeypatch.setattr(kernels, "available", lambda _: True)


def by_torch(codec: Varopt, logits: Tensor, uniforms: Tensor, temperature: float = 1.0) -> Encoded:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kernels, "available", lambda _: False)
        return codec.encode(logits, uniforms, temperature=temperature)


def made(vocab: int, positions: int = 12, power: float = 3.0) -> Tensor:
    generator = torch.Generator().manual_seed(vocab)
    return power * torch.randn(positions, vocab, generator=generator)


def codec_of(vocab: int, bits: int = 8) -> Varopt:
    k = min(16, vocab)
    return Varopt(k, min(4, k - 1), bits, vocab)


def exact_payload(codec: Varopt, logits: Tensor, uniforms: Tensor) -> Tensor:
    """Return the payload by the definition, in float64, one position at a time."""
    steps = 2**codec.head_bits - 2
    codes, ids = [], []
    for z, (u, v) in zip(logits.double(), uniforms.tolist(), strict=True):
        p = z.softmax(-1)
        heads, _ = threshold(p, codec.k, codec.head)
        own = p.argsort(descending=True, stable=True)[:heads]
        ends = (p[own].cumsum(-1) * steps + u).floor().clamp(max=steps)
        tail = p.index_fill(0, own, 0.0).cumsum(-1)
        points = (torch.arange(codec.k - heads) + v) / (codec.k - heads) * tail[-1]
        drawn = torch.searchsorted(tail, points, right=True)
        ids.append(torch.cat([own, drawn]))
        none = torch.full((codec.head - heads,), steps + 1.0)
        codes.append(torch.cat([ends.diff(prepend=torch.zeros(1)), none]))
    return codec.pack(torch.stack(codes), torch.stack(ids))


def differing(one: Tensor, other: Tensor) -> float:
    """Return the share of positions whose bytes differ."""
    return (one != other).any(-1).double().mean().item()


@pytest.mark.parametrize("vocab", VOCABULARIES)
def test_bytes_are_those_of_torch_and_of_the_definition(vocab: int) -> None:
    logits, uniforms = made(vocab), random_uniforms(12)
    codec = codec_of(vocab, bits=8 * (1 + vocab % 2))
    found = codec.encode(logits, uniforms)
    expected = by_torch(codec, logits, uniforms)
    assert found.payload.dtype == torch.uint8
    assert torch.equal(found.payload, expected.payload)
    assert torch.equal(found.payload, exact_payload(codec, logits, uniforms))
    exact = logits.double()
    entropy = torch.special.entr(exact.softmax(-1)).sum(-1)
    torch.testing.assert_close(found.entropy.double(), entropy, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(found.log_norm.double(), exact.logsumexp(-1), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("temperature", [1.0, 1.7])
@pytest.mark.parametrize("vocab", [75, 1000])
def test_any_type_of_logits_in_padded_rows(
    vocab: int, temperature: float, dtype: torch.dtype
) -> None:
    """Columns past the vocabulary are left out; of equal logits either may come first."""
    memory = made(vocab + 61).to(dtype)
    # No ties among the largest, which halves have often.
    memory[:, 7:12] = torch.tensor([9.0, 10.0, 11.0, 12.0, 13.0]).to(dtype)
    memory[:, vocab:] = 100
    uniforms, codec = random_uniforms(len(memory)), codec_of(vocab)
    found = codec.encode(memory, uniforms, temperature=temperature)
    for logits in (memory, memory[:, :vocab].float()):
        expected = by_torch(codec, logits, uniforms, temperature)
        assert torch.equal(found.payload, expected.payload)
        torch.testing.assert_close(found.entropy, expected.entropy, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(found.log_norm, expected.log_norm, rtol=1e-6, atol=1e-6)


def test_of_equal_logits_the_lowest_id_comes_first() -> None:
    logits = torch.zeros(3, 500)
    logits[:, [3, 130, 131, 400]] = 9.0
    codec = Varopt(16, 4, 8, 500)
    ids = codec.decode(codec.encode(logits, random_uniforms(3)).payload).ids
    assert ids[:, :4].tolist() == [[3, 130, 131, 400]] * 3
    torch_ids = codec.decode(by_torch(codec, logits, random_uniforms(3)).payload).ids
    # The tail is what it is.
    assert torch.equal(torch_ids[:, 4:], ids[:, 4:])
    assert torch.equal(torch_ids[:, :4].sort().values, ids[:, :4])


@pytest.mark.parametrize("kind", LOGITS)
@pytest.mark.parametrize("vocab", [2, 129, 300])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_logits_that_no_model_should_give(kind: str, vocab: int, dtype: torch.dtype) -> None:
    logits = make_logits(kind, vocab, dtype, vocab)
    exact = logits.double().log_softmax(-1)
    entropy = torch.special.entr(exact.exp()).sum(-1)
    for k, head in ((2, 1), (min(100, vocab), min(3, vocab - 1))):
        codec = Varopt(k, head, 8, vocab)
        uniforms = random_uniforms(len(logits))
        found, expected = codec.encode(logits, uniforms), by_torch(codec, logits, uniforms)
        torch.testing.assert_close(found.entropy.double(), entropy, rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(found.log_norm, expected.log_norm, rtol=1e-6, atol=1e-6)
        targets, others = (codec.decode(each.payload) for each in (found, expected))
        check_sampled(targets, logits.float())
        assert (targets.probs.sum(-1) - 1).abs().max() < 1e-6
        # Of equal logits others may be in the head, and then others are left for the tail.
        size = codec.ordered_ids(found.payload).max()
        heads, other_heads = (each.ids[:, :size].sort().values for each in (targets, others))
        same = (heads == other_heads).all(-1)
        assert torch.equal(targets.ids[same].sort().values, others.ids[same].sort().values)
        assert same.any() or kind in ("equal", "two levels", "cliffs")


@pytest.mark.parametrize("codec", [CODECS["default"], CODECS["k 2"]], ids=["default", "k 2"])
@pytest.mark.parametrize("name", SOME_SHAPES)
def test_mean_over_a_grid_of_uniforms_is_p(codec: Callable[[int], Varopt], name: str) -> None:
    """Unbiased: each id is hit within one point of its due, and so is each rounding."""
    logits = SHAPES[name]
    subject = codec(len(logits))
    rounding, sampling = 2, 32
    p = logits.double().softmax(-1)
    ids, probs = draw(subject, logits, grid(rounding, sampling))
    _, tau = threshold(p, subject.k, subject.head)
    bound = tau / sampling + 1 / (rounding * (2**subject.head_bits - 2)) + 1e-6
    assert (mean_target(ids, probs, len(p)) - p).abs().max() <= bound
    assert (probs.sum(-1) - 1).abs().max() < 1e-6


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_large_vocabulary(dtype: torch.dtype) -> None:
    vocab = 151_669
    logits, uniforms = made(vocab, 3, 1.0).to(dtype), random_uniforms(3)
    logits[:, 11] = torch.arange(3).to(dtype) + 8
    codec = Varopt(16, 2, 8, vocab)
    found, expected = codec.encode(logits, uniforms), by_torch(codec, logits, uniforms)
    one, other = (codec.decode(each.payload) for each in (found, expected))
    # Some hundred ids lie within what the sums of float32 are rounded by.
    assert (one.ids != other.ids).double().mean() < 0.05
    exact = logits.double()
    torch.testing.assert_close(found.log_norm.double(), exact.logsumexp(-1), rtol=0, atol=2e-5)
    entropy = torch.special.entr(exact.softmax(-1)).sum(-1)
    torch.testing.assert_close(found.entropy.double(), entropy, rtol=0, atol=1e-4)


@pytest.mark.parametrize("uniform", [0.0, 1 - 2.0**-53])
def test_the_last_point_falls_on_an_id_with_mass(uniform: float) -> None:
    logits = made(1000)
    logits[:, 640:] = -torch.inf
    logits[:, :130] = -torch.inf
    uniforms = torch.full((len(logits), 2), uniform, dtype=torch.float64)
    codec = Varopt(12, 4, 8, 1000)
    targets = codec.decode(codec.encode(logits, uniforms).payload)
    assert not torch.isinf(logits.gather(-1, targets.ids)).any()
    if uniform:
        assert (targets.ids[:, -1] == 639).all()
    assert torch.equal(targets.ids, codec.decode(by_torch(codec, logits, uniforms).payload).ids)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_positions_without_a_distribution_are_refused(bad: float) -> None:
    logits = made(300)
    logits[[1, 5], 0 if bad != -torch.inf else slice(None)] = bad
    with pytest.raises(KdscaleError, match="at 2 of 12 positions"):
        codec_of(300).encode(logits, random_uniforms(12))


def test_many_positions_have_the_bytes_of_torch() -> None:
    """But for draws at the very edge of an id."""
    vocab = 1000
    logits, uniforms = made(vocab, 100), random_uniforms(100)
    codec = codec_of(vocab)
    found, expected = codec.encode(logits, uniforms), by_torch(codec, logits, uniforms)
    assert differing(found.payload, expected.payload) <= 0.001


def test_no_more_ids_than_a_kernel_takes() -> None:
    codec = Varopt(kernels.MOST_IDS + 1, 2, 8, 1000)
    logits, uniforms = made(1000), random_uniforms(12)
    found, expected = codec.encode(logits, uniforms), by_torch(codec, logits, uniforms)
    assert torch.equal(found.payload, expected.payload)
    assert not kernels.take(2, 1 << 21, "cuda")
