"""Packing gives back what was packed, whatever the codec and the prior, and makes it smaller."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from kdscale.cache.codecs import make_codec, uniforms
from kdscale.cache.codecs.id_bytes import MAX_IDS, from_bytes, id_bytes, to_bytes
from kdscale.cache.format.packing import Packing, bit_windows, join_bits, packable
from kdscale.cache.format.prior import Prior, count_prior, decode_prior, encode_prior
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
    # What was unpacked packs to the same bytes: a shard that is copied keeps its name.
    assert packing.pack(tokens.ravel(), found) == data


def ids_of(codec: object, payload: np.ndarray) -> np.ndarray:
    held = torch.from_numpy(payload[:, codec.prefix_bytes :])  # type: ignore[attr-defined]  # any packable codec
    return from_bytes(held, id_bytes(codec.vocab_size)).numpy()  # type: ignore[attr-defined]  # as above


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


@settings(deadline=None, max_examples=60)
@given(st.lists(st.tuples(st.integers(0, 24), st.integers(0, 2**24 - 1)), max_size=60))
def test_numbers_of_any_widths_are_joined_and_split(numbers: list[tuple[int, int]]) -> None:
    widths = np.array([width for width, _ in numbers], np.int32)
    values = np.array([value % (1 << width) for width, value in numbers], np.int32)
    data = join_bits(values, widths)
    assert len(data) == (widths.sum() + 7) // 8
    offsets = np.cumsum(widths) - widths
    naive = sum(int(value) << int(at) for value, at in zip(values, offsets, strict=True))
    assert int.from_bytes(data, "little") == naive
    windows = bit_windows(data).astype(np.int64)
    found = (windows[offsets >> 3] >> (offsets & 7)) & ((1 << widths) - 1)
    assert np.array_equal(found, values)


@settings(deadline=None, max_examples=60)
@given(
    vocab_size=st.sampled_from([40, 64, 257, 65_535, 65_536, 65_537, 200_000, 1 << 22]),
    k=st.integers(2, 40),
    head_bits=st.sampled_from([8, 16]),
    count=st.integers(0, 50),
    seed=st.integers(0, 99),
)
@example(vocab_size=MAX_IDS, k=12, head_bits=16, count=50, seed=0)
def test_any_ids_come_back(vocab_size: int, k: int, head_bits: int, count: int, seed: int) -> None:
    """Also those that no teacher would draw."""
    codec = make_codec(VaroptCodec(k=k, head=k // 2, head_bits=head_bits), vocab_size)
    assert packable(codec)
    generator = np.random.default_rng(seed)
    ids = generator.integers(0, vocab_size, (count, k))
    contexts = generator.integers(0, vocab_size, count)
    codes = generator.choice([0, 7, 2**head_bits - 1], (count, k // 2))
    pairs = ((codes, head_bits // 8), (ids, id_bytes(vocab_size)))
    payload = torch.cat([to_bytes(torch.from_numpy(n), size) for n, size in pairs], 1).numpy()
    packing = Packing(codec, prior_of(text(min(vocab_size, 300), seed=seed), vocab_size))
    found = packing.unpack(contexts, packing.pack(contexts, payload))
    assert np.array_equal(found[:, : codec.prefix_bytes], payload[:, : codec.prefix_bytes])
    ordered = (codes != 2**head_bits - 1).sum(1)
    for before, after, leading in zip(ids, ids_of(codec, found), ordered, strict=True):
        assert np.array_equal(after[:leading], before[:leading])
        assert sorted(after[leading:]) == sorted(before[leading:])


@pytest.mark.parametrize(
    "config",
    [
        SampleCodec(draws=255, tau=0.8),
        SampleCodec(draws=256, tau=0.8),
        SampleCodec(draws=300, tau=1.2),
        SampleCodec(draws=1, tau=0.8),
        SampleCodec(draws=1),
        SampleCodec(draws=1000),
        VaroptCodec(k=300, head=299),
        VaroptCodec(k=600, head=257, head_bits=16),
        VaroptCodec(k=256, head=255),
        VaroptCodec(k=1000, head=1),
        VaroptCodec(k=2, head=1),
    ],
    ids=str,
)
def test_every_setting_of_a_codec_comes_back(config: CodecConfig) -> None:
    """However many ids have a meaning by their place."""
    vocab_size, tokens = 1000, text(1000, rows=2, length=3)
    codec = make_codec(config, vocab_size)
    assert packable(codec)
    # A flat teacher and a steep one: heads of every size.
    generator = torch.Generator().manual_seed(0)
    scale = torch.tensor([0.0, 0.1, 0.3, 1.0, 3.0, 9.0])[:, None]
    logits = scale * torch.randn(6, vocab_size, generator=generator)
    noise = torch.rand(6, codec.streams, generator=generator, dtype=torch.float64)
    payload = codec.encode(logits, noise).payload.numpy()
    packing = Packing(codec, prior_of(text(vocab_size, seed=1), vocab_size))
    data = packing.pack(tokens.ravel(), payload)
    found = packing.unpack(tokens.ravel(), data)
    ordered = codec.ordered_ids(torch.from_numpy(payload)).numpy()
    assert np.array_equal(found[:, : codec.prefix_bytes], payload[:, : codec.prefix_bytes])
    pairs = zip(ids_of(codec, payload), ids_of(codec, found), ordered, strict=True)
    for before, after, leading in pairs:
        assert np.array_equal(after[:leading], before[:leading])
        assert np.array_equal(np.sort(after[leading:]), np.sort(before[leading:]))
    assert packing.pack(tokens.ravel(), found) == data


PACKED = bytes.fromhex(
    "03000000c000000028b52ffd200319000002010028b52ffd2001090000ff28b52ffd2001090000c828b52ffd"
    "2001090000c828b52ffd2001090000ff28b52ffd2001090000ff28b52ffd20010900000a28b52ffd20010900"
    "001328b52ffd20010900000028b52ffd20010900001428b52ffd20010900000428b52ffd20010900001428b5"
    "2ffd20010900001428b52ffd20010900000428b52ffd20010900000028b52ffd20010900001128b52ffd2001"
    "0900000428b52ffd20010900000a28b52ffd20010900000e7607"
)
"""What kdscale wrote when all counts of ordered ids took one byte."""


def test_bytes_of_an_older_cache_are_read() -> None:
    codec = make_codec(VaroptCodec(k=4, head=2), 40)
    assert packable(codec)
    falling = np.arange(40, dtype=np.int32)[::-1].copy()
    prior = Prior(np.zeros(41, np.int32), np.zeros(0, np.int32), falling)
    found = Packing(codec, prior).unpack(np.arange(3), PACKED)
    assert ids_of(codec, found).tolist() == [[3, 1, 20, 9], [39, 5, 5, 0], [10, 9, 8, 7]]
    assert found[:, :2].tolist() == [[200, 10], [200, 255], [255, 255]]


def test_bytes_that_no_packing_wrote_are_refused() -> None:
    tokens = text(300)
    packing = Packing(make_codec(CODECS[0], 300), prior_of(tokens, 300))
    contexts = tokens.ravel()
    data = packing.pack(contexts, encoded(CODECS[0], 300, tokens))
    none = replace(packing, prior=prior_of(tokens[:0], 300))
    for change in (
        lambda: packing.unpack(contexts, data[:-9]),
        lambda: packing.unpack(contexts[1:], data),
        lambda: none.unpack(contexts, data),
    ):
        with pytest.raises(ValueError, match="packed"):
            change()


def test_positions_go_where_they_belong_and_nowhere_else() -> None:
    tokens = text(300)
    packing = Packing(make_codec(CODECS[0], 300), prior_of(tokens, 300))
    payload = encoded(CODECS[0], 300, tokens)
    contexts, width = tokens.ravel(), payload.shape[1]
    data = packing.pack(contexts, payload)
    memory = np.full(3 * payload.size, 77, np.uint8)
    starts = 3 * width * np.random.default_rng(0).permutation(len(payload)) + 5
    packing.unpack_to(memory, starts, contexts, data)
    taken = starts[:, None] + np.arange(width)
    assert np.array_equal(memory[taken], packing.unpack(contexts, data))
    memory[taken] = 77
    assert (memory == 77).all()
