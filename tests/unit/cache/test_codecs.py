"""`full` and `topk` keep what they say, and all codecs refuse what they cannot encode."""

import json

import pytest
import torch

from kdscale.cache.codecs import make_codec, open_codec
from kdscale.config.cache import CodecConfig, FullCodec, TopkCodec, VaroptCodec
from kdscale.errors import KdscaleError
from kdscale.types import DenseTargets, SparseTargets

CODECS = [
    FullCodec(),
    TopkCodec(k=5),
    TopkCodec(k=1),
    VaroptCodec(k=6, head=2),
    VaroptCodec(head_bits=16),
]


def some_logits(positions: int, vocab: int, scale: float = 3.0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(positions, vocab, generator=generator) * scale


def some_uniforms(positions: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(2)
    return torch.rand(positions, 2, generator=generator, dtype=torch.float64)


def test_full_keeps_every_probability_to_float16() -> None:
    codec = make_codec(FullCodec(), 300)
    logits = some_logits(40, 300)
    payload = codec.encode(logits, some_uniforms(40))
    assert payload.shape == (40, codec.bytes_per_position) == (40, 600)
    targets = codec.decode(payload)
    assert isinstance(targets, DenseTargets)
    exact = logits.log_softmax(-1)
    # float16 has 11 bits; the renormalisation adds the error of the largest terms.
    assert ((targets.log_probs - exact).abs() <= exact.abs() * 2.0**-11 + 2e-3).all()
    assert torch.allclose(targets.log_probs.exp().sum(-1), torch.ones(40), atol=1e-6)


def test_full_keeps_ids_without_mass_at_minus_infinity() -> None:
    codec = make_codec(FullCodec(), 4)
    logits = torch.tensor([[0.0, 0.0, -torch.inf, -torch.inf]])
    targets = codec.decode(codec.encode(logits, some_uniforms(1)))
    assert isinstance(targets, DenseTargets)
    assert targets.log_probs.exp().tolist() == [[0.5, 0.5, 0, 0]]


def test_topk_keeps_the_largest_and_the_mass_left_over() -> None:
    codec = make_codec(TopkCodec(k=5), 300)
    logits = some_logits(40, 300)
    payload = codec.encode(logits, some_uniforms(40))
    assert payload.shape == (40, codec.bytes_per_position) == (40, 6 + 10)
    targets = codec.decode(payload)
    assert isinstance(targets, SparseTargets)
    assert targets.ghost is not None
    exact = logits.softmax(-1).topk(5)
    assert torch.equal(targets.ids, exact.indices)
    assert torch.allclose(targets.probs, exact.values, rtol=2.0**-11 * 10)
    assert torch.allclose(targets.ghost, 1 - exact.values.sum(-1), atol=2e-3)


def test_topk_ghost_is_never_negative() -> None:
    codec = make_codec(TopkCodec(k=300), 300)
    targets = codec.decode(codec.encode(some_logits(200, 300), some_uniforms(200)))
    assert isinstance(targets, SparseTargets)
    assert targets.ghost is not None
    assert (targets.ghost >= 0).all()
    assert (targets.ghost < 2e-3).all()


@pytest.mark.parametrize("config", CODECS)
def test_description_is_json_and_gives_the_codec_back(config: CodecConfig) -> None:
    codec = make_codec(config, 5000)
    assert open_codec(json.loads(json.dumps(codec.describe()))) == codec
    assert codec.describe()["vocab_size"] == 5000


@pytest.mark.parametrize("config", CODECS)
def test_padding_columns_are_left_out(config: CodecConfig) -> None:
    codec = make_codec(config, 200)
    padded = some_logits(30, 256)
    padded[:, 200:] = -torch.inf
    uniforms = some_uniforms(30)
    assert torch.equal(codec.encode(padded, uniforms), codec.encode(padded[:, :200], uniforms))


@pytest.mark.parametrize("config", CODECS)
def test_lower_precision_logits_are_upcast_first(config: CodecConfig) -> None:
    codec = make_codec(config, 200)
    logits, uniforms = some_logits(30, 200).bfloat16(), some_uniforms(30)
    assert torch.equal(codec.encode(logits, uniforms), codec.encode(logits.float(), uniforms))


@pytest.mark.parametrize("config", CODECS)
def test_decoding_keeps_leading_dimensions(config: CodecConfig) -> None:
    codec = make_codec(config, 200)
    payload = codec.encode(some_logits(30, 200), some_uniforms(30))
    flat, deep = codec.decode(payload), codec.decode(payload.reshape(5, 6, -1))
    one = codec.decode(payload[7])  # its parts start at any byte
    if isinstance(flat, SparseTargets):
        assert isinstance(one, SparseTargets)
        assert torch.equal(one.probs, flat.probs[7])
    if isinstance(flat, DenseTargets):
        assert isinstance(deep, DenseTargets)
        assert torch.equal(deep.log_probs.reshape(30, -1), flat.log_probs)
    else:
        assert isinstance(deep, SparseTargets)
        assert torch.equal(deep.ids.reshape(30, -1), flat.ids)
        assert torch.equal(deep.probs.reshape(30, -1), flat.probs)


@pytest.mark.parametrize("config", CODECS)
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_logits_without_a_distribution_are_refused(config: CodecConfig, value: float) -> None:
    logits = some_logits(30, 200)
    logits[7, 150] = value
    with pytest.raises(KdscaleError, match="NaN or infinity at 1 of 30 positions"):
        make_codec(config, 200).encode(logits, some_uniforms(30))


@pytest.mark.parametrize("config", CODECS)
def test_too_few_columns_are_refused(config: CodecConfig) -> None:
    with pytest.raises(KdscaleError, match=r"shape \(3, 199\)"):
        make_codec(config, 200).encode(some_logits(3, 199), some_uniforms(3))


def test_more_ids_than_the_vocabulary_has_are_refused() -> None:
    assert make_codec(TopkCodec(k=12), 12).bytes_per_position == 6 + 24
    for config in (TopkCodec(k=12), VaroptCodec(k=12)):
        with pytest.raises(KdscaleError, match="k is 12, but the vocabulary has only 11 ids"):
            make_codec(config, 11)
    with pytest.raises(KdscaleError, match="larger than"):
        make_codec(FullCodec(), (1 << 24) + 1)


@pytest.mark.parametrize("config", CODECS)
def test_no_positions_are_encoded_to_nothing(config: CodecConfig) -> None:
    """A batch of rows without a single target."""
    codec = make_codec(config, 200)
    payload = codec.encode(some_logits(0, 200), some_uniforms(0))
    assert payload.shape == (0, codec.bytes_per_position)
    assert payload.dtype == torch.uint8
    codec.decode(payload)
