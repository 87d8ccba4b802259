"""Packing gives back what was packed, whatever the codec and the prior, and makes it smaller."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kdscale.cache import bitstream
from kdscale.cache.codecs import bits, make_codec, uniforms
from kdscale.cache.packing import Packing, packable
from kdscale.cache.prior import Prior, count_prior, decode_prior, encode_prior
from kdscale.config.cache import CodecConfig, FullCodec, SampleCodec, TopkCodec, VaroptCodec

CODECS: list[CodecConfig] = [
    VaroptCodec(k=12, head=4),
    VaroptCodec(k=2, head=1, head_bits=16),
    SampleCodec(draws=9),
    SampleCodec(draws=5, tau=0.9),
]


def text(vocab_size: int, rows: int = 40, length: int = 64, seed: int = 0) -> np.ndarray:
    """[R, T] tokens in which each has a few usual followers, all with Zipf's frequencies."""
    generator = np.random.default_rng(seed)
    steps = np.minimum(generator.zipf(1.4, (rows, length)), vocab_size)
    return (np.cumsum(steps, axis=1) * 7 % vocab_size).astype(np.int32)


def encoded(config: CodecConfig, vocab_size: int, tokens: np.ndarray) -> np.ndarray:
    """[P, bytes] payload of a teacher that expects what `text` likes to say."""
    codec = make_codec(config, vocab_size)
    distance = (
        torch.arange(vocab_size) - torch.from_numpy(tokens.ravel())[:, None] * 1
    ) % vocab_size
    logits = -1.4 * torch.log1p((distance * pow(7, -1, vocab_size)) % vocab_size + 0.5)
    sample_ids = torch.arange(16, dtype=torch.uint8).expand(tokens.shape[0], 16).contiguous()
    noise = uniforms(0, sample_ids, tokens.shape[1], codec.streams).flatten(0, 1)
    return codec.encode(logits, noise).payload.numpy()


def prior_of(tokens: np.ndarray, vocab_size: int) -> Prior:
    return count_prior([(tokens, np.ones(tokens.shape, np.bool_))], vocab_size)


def meaning(config: CodecConfig, vocab_size: int, payload: np.ndarray) -> torch.Tensor:
    """[P, V] target probabilities."""
    targets = make_codec(config, vocab_size).decode(torch.from_numpy(payload))
    return torch.zeros(len(payload), vocab_size).scatter_add_(-1, targets.ids, targets.probs)


@pytest.mark.parametrize("config", CODECS, ids=str)
@pytest.mark.parametrize("vocab_size", [257, 1000])
def test_packed_positions_mean_what_they_meant(config: CodecConfig, vocab_size: int) -> None:
    tokens = text(vocab_size)
    payload = encoded(config, vocab_size, tokens)
    codec = make_codec(config, vocab_size)
    assert packable(codec)
    packing = Packing(codec, prior_of(text(vocab_size, seed=1), vocab_size))
    data = packing.pack(tokens.ravel(), payload)
    found = packing.unpack(tokens.ravel(), data)
    assert torch.equal(meaning(config, vocab_size, found), meaning(config, vocab_size, payload))
    ordered = codec.ordered_ids(torch.from_numpy(payload)).numpy()
    assert np.array_equal(found[:, : codec.prefix_bytes], payload[:, : codec.prefix_bytes])
    before, after = (ids_of(codec, p) for p in (payload, found))
    leading = np.arange(codec.k) < ordered[:, None]
    assert np.array_equal(before[leading], after[leading])
    # What was unpacked packs to the same bytes: a unit that is copied keeps its name.
    assert packing.pack(tokens.ravel(), found) == data


def ids_of(codec: object, payload: np.ndarray) -> np.ndarray:
    packed = torch.from_numpy(payload[:, codec.prefix_bytes :])  # type: ignore[attr-defined]  # any packable codec
    return bits.unpack(packed, codec.k, codec.id_width).numpy()  # type: ignore[attr-defined]  # as above


def test_a_prior_of_the_text_saves_a_third_and_none_still_saves() -> None:
    config, vocab_size = VaroptCodec(k=12, head=4), 4096
    tokens = text(vocab_size, rows=200)
    payload = encoded(config, vocab_size, tokens)
    codec = make_codec(config, vocab_size)
    sizes = {
        name: len(Packing(codec, prior).pack(tokens.ravel(), payload)) / len(payload)
        for name, prior in {
            "text": prior_of(text(vocab_size, rows=2000, seed=1), vocab_size),
            "empty": prior_of(tokens[:0], vocab_size),
        }.items()
    }
    assert sizes["text"] < 2 / 3 * codec.bytes_per_position
    assert sizes["text"] < sizes["empty"] < codec.bytes_per_position


def test_codecs_without_sampled_ids_are_not_packed() -> None:
    assert not packable(make_codec(TopkCodec(k=5), 50))
    assert not packable(make_codec(FullCodec(), 50))


@pytest.mark.parametrize("count", [0, 1])
def test_hardly_any_positions(count: int) -> None:
    config = CODECS[0]
    tokens = text(300)
    payload = encoded(config, 300, tokens)[:count]
    packing = Packing(make_codec(config, 300), prior_of(tokens, 300))
    contexts = tokens.ravel()[:count]
    found = packing.unpack(contexts, packing.pack(contexts, payload))
    assert torch.equal(meaning(config, 300, found), meaning(config, 300, payload))


def naive_ranks(prior: Prior, context: int) -> list[int]:
    """All ids by rank: followers, then the order of all. The first of a follower's ranks counts."""
    followers = prior.followers[prior.starts[context] : prior.starts[context + 1]].tolist()
    return followers + prior.order.tolist()


def test_rank_is_the_place_among_followers_then_in_the_order_of_all() -> None:
    tokens = text(60, rows=30)
    prior = prior_of(tokens, 60)
    assert len(prior.followers) > 100
    contexts = np.repeat(np.arange(60), 60)
    ids = np.tile(np.arange(60), 60)[:, None]
    ranks = prior.rank(contexts, ids)
    for context, id_, rank in zip(contexts, ids[:, 0], ranks[:, 0], strict=True):
        assert naive_ranks(prior, context).index(id_) == rank
    assert np.array_equal(prior.identifier(contexts)(ranks[:, 0]), ids[:, 0])


def test_prior_counts_targets_alone_and_most_frequent_first() -> None:
    tokens = np.array([[1, 2, 1, 2, 1, 2, 1, 3, 1, 3, 1, 3, 1, 3], [5, 6] * 7], np.int32)
    mask = np.ones(tokens.shape, np.bool_)
    mask[1] = False
    prior = count_prior([(tokens, mask)], 8)
    assert prior.followers[prior.starts[1] : prior.starts[2]].tolist() == [3, 2]
    assert prior.followers[prior.starts[2] : prior.starts[3]].tolist() == [1]
    assert prior.starts[5] == prior.starts[7]
    assert prior.order.tolist() == [1, 3, 2, 0, 4, 5, 6, 7]
    # Counting in parts is counting.
    doubled = count_prior([(tokens, mask), (tokens[:1], mask[:1])], 8)
    assert doubled.followers.tolist() == prior.followers.tolist()


@pytest.mark.parametrize("vocab_size", [8, 60, 70_000])
def test_prior_round_trips(vocab_size: int) -> None:
    tokens = np.minimum(text(60, rows=30), vocab_size - 1)
    prior = prior_of(tokens, vocab_size)
    data = encode_prior(prior)
    found = decode_prior(data)
    for name in ("starts", "followers", "order"):
        assert np.array_equal(getattr(found, name), getattr(prior, name)), name
    assert encode_prior(found) == data
    assert len(data) < 6000


def test_a_prior_without_followers_is_the_order_of_all() -> None:
    prior = replace(
        prior_of(text(60), 60), starts=np.zeros(61, np.int32), followers=np.zeros(0, np.int32)
    )
    ids = np.arange(60)[:, None]
    ranks = prior.rank(np.zeros(60, np.int64), ids)
    assert np.array_equal(prior.order[ranks], ids)
    assert np.array_equal(prior.identifier(np.zeros(60, np.int64))(ranks[:, 0]), ids[:, 0])


@settings(deadline=None, max_examples=60)
@given(st.lists(st.tuples(st.integers(0, 24), st.integers(0, 2**24 - 1)), max_size=60))
def test_bitstream_joins_and_splits_any_widths(numbers: list[tuple[int, int]]) -> None:
    widths = np.array([width for width, _ in numbers], np.int32)
    values = np.array([value % (1 << width) for width, value in numbers], np.int32)
    data = bitstream.join(values, widths)
    assert len(data) == (widths.sum() + 7) // 8
    naive = sum(
        int(value) << int(at) for value, at in zip(values, np.cumsum(widths) - widths, strict=True)
    )
    assert int.from_bytes(data, "little") == naive
    reader, half = bitstream.Reader(data), len(numbers) // 2
    parts = [reader.read(part).tolist() for part in (widths[:half], widths[half:])]
    assert parts[0] + parts[1] == values.tolist()


@pytest.mark.parametrize("width", [1, 7, 16, 17, 18, 24])
@pytest.mark.parametrize("columns", [1, 5, 12])
def test_columns_are_packed_as_the_codec_packs_them(columns: int, width: int) -> None:
    ids = np.random.default_rng(0).integers(0, 1 << width, (9, columns))
    packed = bitstream.Columns(9, columns, width)
    for column in ids.T:
        packed.append(column)
    assert np.array_equal(packed.packed(), bits.pack(torch.from_numpy(ids), width).numpy())
