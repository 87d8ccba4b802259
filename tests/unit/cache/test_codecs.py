"""What all codecs share: statistics, chunks, shapes, refusals; and what `full` keeps."""

import json
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch

from kdscale.cache.codecs import Codec, Encoded, chunked, make_codec, open_codec
from kdscale.config.cache import CodecConfig, FullCodec, SampleCodec, TopkCodec, VaroptCodec
from kdscale.errors import KdscaleError
from kdscale.types import DenseTargets, SparseTargets

CODECS = [
    FullCodec(),
    TopkCodec(k=5),
    TopkCodec(k=1),
    TopkCodec(k=7, value_bits=8),
    SampleCodec(draws=9),
    SampleCodec(draws=9, tau=0.7),
    VaroptCodec(k=6, head=2),
    VaroptCodec(head_bits=16),
]


def some_logits(positions: int, vocab: int, scale: float = 3.0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(positions, vocab, generator=generator) * scale


def some_uniforms(codec: Codec, positions: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(2)
    return torch.rand(positions, codec.streams, generator=generator, dtype=torch.float64)


def encode(codec: Codec, logits: torch.Tensor) -> Encoded:
    return codec.encode(logits, some_uniforms(codec, len(logits)))


def assert_same(left: Encoded, right: Encoded) -> None:
    assert torch.equal(left.payload, right.payload)
    assert torch.equal(left.entropy, right.entropy)
    assert torch.equal(left.log_norm, right.log_norm)


def test_full_keeps_every_probability_to_float16() -> None:
    codec = make_codec(FullCodec(), 300)
    logits = some_logits(40, 300)
    payload = encode(codec, logits).payload
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
    targets = codec.decode(encode(codec, logits).payload)
    assert isinstance(targets, DenseTargets)
    assert targets.log_probs.exp().tolist() == [[0.5, 0.5, 0, 0]]


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
    assert_same(encode(codec, padded), encode(codec, padded[:, :200]))


@pytest.mark.parametrize("config", CODECS)
def test_lower_precision_logits_are_upcast_first(config: CodecConfig) -> None:
    codec = make_codec(config, 200)
    logits = some_logits(30, 200).bfloat16()
    assert_same(encode(codec, logits), encode(codec, logits.float()))


@pytest.mark.parametrize("config", CODECS)
def test_decoding_keeps_leading_dimensions(config: CodecConfig) -> None:
    codec = make_codec(config, 200)
    payload = encode(codec, some_logits(30, 200)).payload
    flat, deep = codec.decode(payload), codec.decode(payload.reshape(5, 6, -1))
    # Positions may start at any byte.
    for start in range(2):
        held = torch.cat([torch.zeros(start, dtype=torch.uint8), payload[7]])
        one = codec.decode(held[start:])
        for name, value in vars(one).items():
            assert value is None or torch.equal(value, getattr(flat, name)[7])
    if isinstance(flat, DenseTargets):
        assert isinstance(deep, DenseTargets)
        assert torch.equal(deep.log_probs.reshape(30, -1), flat.log_probs)
    else:
        assert isinstance(deep, SparseTargets)
        assert torch.equal(deep.ids.reshape(30, -1), flat.ids)
        assert torch.equal(deep.probs.reshape(30, -1), flat.probs)


@pytest.mark.parametrize("config", CODECS)
@pytest.mark.parametrize("vocab", [200, 256])
@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_logits_without_a_distribution_are_refused(
    config: CodecConfig, value: float, vocab: int
) -> None:
    logits = some_logits(30, vocab)
    # One id without mass is fine; a position without any is not.
    logits[7, 0 if value < 0 else 150 :] = value
    with pytest.raises(KdscaleError, match="NaN or infinity at 1 of 30 positions"):
        encode(make_codec(config, vocab), logits)


@pytest.mark.parametrize("config", CODECS)
def test_too_few_columns_are_refused(config: CodecConfig) -> None:
    with pytest.raises(KdscaleError, match=r"shape \(3, 199\)"):
        encode(make_codec(config, 200), some_logits(3, 199))


def test_more_ids_than_the_vocabulary_has_are_refused() -> None:
    assert make_codec(TopkCodec(k=12), 12).bytes_per_position == 24 + 24
    for config in (TopkCodec(k=12), VaroptCodec(k=12)):
        with pytest.raises(KdscaleError, match="k is 12, but the vocabulary has only 11 ids"):
            make_codec(config, 11)
    with pytest.raises(KdscaleError, match="larger than"):
        make_codec(FullCodec(), (1 << 24) + 1)


@pytest.mark.parametrize("config", CODECS)
def test_no_positions_are_encoded_to_nothing(config: CodecConfig) -> None:
    """A batch of rows without a single target."""
    codec = make_codec(config, 200)
    encoded = codec.encode(some_logits(0, 200), some_uniforms(codec, 0))
    assert encoded.payload.shape == (0, codec.bytes_per_position)
    assert encoded.payload.dtype == torch.uint8
    assert encoded.entropy.shape == encoded.log_norm.shape == (0,)
    codec.decode(encoded.payload)


@pytest.mark.parametrize("config", CODECS)
@pytest.mark.parametrize("temperature", [1.0, 0.5, 3.0])
def test_statistics_are_those_of_the_softmax(config: CodecConfig, temperature: float) -> None:
    """Also where logits are large, or ids have no mass."""
    logits = some_logits(60, 1000, scale=4.0) + torch.linspace(-80, 80, 60)[:, None]
    logits[20:40, 500:] = -torch.inf
    logits[30] = -torch.inf
    logits[30, 77] = 3.0
    codec = make_codec(config, 1000)
    encoded = codec.encode(logits, some_uniforms(codec, 60), temperature=temperature)
    scaled = logits.double() / temperature
    exact = torch.special.entr(scaled.softmax(-1)).sum(-1)
    assert encoded.entropy.dtype == encoded.log_norm.dtype == torch.float32
    # Differences of numbers up to 250 in float32.
    assert (encoded.entropy - exact).abs().max() < 2e-4
    assert (encoded.log_norm - scaled.logsumexp(-1)).abs().max() < 1e-4


@pytest.mark.parametrize("config", CODECS)
def test_temperature_divides_the_logits(config: CodecConfig) -> None:
    codec = make_codec(config, 300)
    logits, uniforms = some_logits(30, 300), some_uniforms(codec, 30)
    before = logits.clone()
    found = codec.encode(logits, uniforms, temperature=2.0)
    assert torch.equal(logits, before)
    assert_same(found, codec.encode(logits / 2, uniforms))


@contextmanager
def chunks_of(elements: int, threads: int) -> Iterator[None]:
    before = chunked._CHUNK_ELEMENTS_THREAD, torch.get_num_threads()
    chunked._CHUNK_ELEMENTS_THREAD = -(-elements // threads)
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        chunked._CHUNK_ELEMENTS_THREAD = before[0]
        torch.set_num_threads(before[1])


@pytest.mark.parametrize("config", CODECS)
@pytest.mark.parametrize("vocab", [49_152, 50_257])
def test_bytes_depend_on_neither_batch_nor_chunk_nor_threads(
    config: CodecConfig, vocab: int
) -> None:
    """Captured again in other batches, a shard must come out the same."""
    codec = make_codec(config, vocab)
    logits = some_logits(23, vocab)
    logits[5, 100:30_000] = -torch.inf
    uniforms = some_uniforms(codec, 23)
    whole = codec.encode(logits, uniforms)
    for positions, threads in ((1, 1), (1, 2), (4, 3), (23, 2)):
        with chunks_of(positions * vocab, threads):
            assert_same(codec.encode(logits, uniforms), whole)
    where = torch.tensor([21, 5, 6, 7])
    part = codec.encode(logits[where], uniforms[where])
    expected = Encoded(whole.payload[where], whole.entropy[where], whole.log_norm[where])
    assert_same(part, expected)


@pytest.mark.parametrize("vocab", [2, 3, 128, 65_535, 65_536, 65_537, (1 << 17) + 1])
@pytest.mark.parametrize("kind", ["sample", "topk", "varopt"])
def test_any_vocabulary_takes_the_bytes_it_needs(vocab: int, kind: str) -> None:
    configs = {
        "sample": SampleCodec(draws=5),
        "topk": TopkCodec(k=2),
        "varopt": VaroptCodec(k=2, head=1),
    }
    codec = make_codec(configs[kind], vocab)
    size = 2 if vocab <= 65_536 else 3
    others = {"sample": 0, "topk": 4, "varopt": 1}[kind]
    assert codec.bytes_per_position == others + size * (5 if kind == "sample" else 2)
    logits = torch.zeros(50, vocab)
    logits[:, -1] = 40.0
    targets = codec.decode(encode(codec, logits).payload)
    assert isinstance(targets, SparseTargets)
    assert (targets.ids[:, 0] == vocab - 1).all()
    mass = (targets.probs * (targets.ids == vocab - 1)).sum(-1)
    assert torch.allclose(mass, torch.ones(50), atol=1e-6)
