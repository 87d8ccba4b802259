"""Bytes of a cache, decoded and at rest, and the requests that a store sees."""

import math
from dataclasses import dataclass

import numpy as np

from kdscale.cache.codecs import make_codec
from kdscale.cache.format.packing import packable
from kdscale.config.cache import (
    CacheConfig,
    CodecConfig,
    FullCodec,
    SampleCodec,
    TopkCodec,
    VaroptCodec,
)
from kdscale.plan.inputs import Setting

# Payload at rest over payload decoded, by ids or draws; measured on SmolLM2-135M over BBC news,
# benchmarks/results/codec_fidelity.json. What is packed shrinks with the number of ids; the order
# and the values of topk leave zstd little to find.
_RATIOS = {
    "varopt": ((3, 0.55), (8, 0.60), (12, 0.59), (16, 0.58), (24, 0.57), (48, 0.51), (64, 0.48)),
    "sample": ((4, 0.50), (12, 0.42), (25, 0.36), (50, 0.31), (100, 0.26)),
    "topk": ((3, 0.85), (12, 0.88), (50, 0.89)),
    "full": ((1, 0.85),),
}
# Payload of codecs that sample, stored as it is (cache.pack: false): random bits.
_UNPACKED = 0.97
# Tokens, generations and masks of a position, zstd-compressed, for each bit of log2(V).
_TEXT_A_BIT = 0.11
# What frames them, see cache/format: of a row its statistics, in the index and in its chunk; of a
# chunk the headers of its message and columns, and its line in two tables; of a shard two schemas
# and its line in the manifest.
_ROW, _CHUNK, _SHARD = 60, 1070, 3600
# A pair of tokens in the prior: its bytes, and how many positions there are for one that came often
# enough.
_PRIOR_PAIR, _POSITIONS_A_PAIR, _MOST_PAIRS = 3, 24, 4 << 20
_LIST = 1000  # keys of one answer


@dataclass(frozen=True)
class CacheBytes:
    """A codec's cache, prior, tokens and index included where `at_rest`."""

    codec: CodecConfig
    decoded_position: float
    at_rest_position: float
    at_rest: int


@dataclass(frozen=True)
class Requests:
    """Of the cache's capture and of one student (with its baseline) that reads it."""

    puts: int
    heads: int
    lists: int
    gets: int
    written_bytes: int
    read_bytes: int


def payload_at_rest(codec: CodecConfig, vocab_size: int, pack: bool = True) -> float:
    """Bytes of a position's payload in the store: decoded bytes times the measured ratio of the
    codec's family at its number of ids, on straight lines between those measured."""
    made = make_codec(codec, vocab_size)
    decoded = made.bytes_per_position
    if packable(made) and not pack:
        return _UNPACKED * decoded
    size = codec.draws if isinstance(codec, SampleCodec) else getattr(codec, "k", 1)
    sizes, ratios = np.array(_RATIOS[codec.kind]).T
    return decoded * float(np.interp(size, sizes, ratios))


def cache_bytes(config: CacheConfig, codec: CodecConfig, setting: Setting) -> CacheBytes:
    """A whole cache of `codec`: targets x payload + positions x 0.11 log2(V) bytes of tokens and
    masks + 60 bytes a row + 1,070 a chunk + 3,600 a shard + the prior of codecs that are packed.
    The payload is what a calibration measured of this teacher, text and codec, else
    `payload_at_rest`."""
    tokens = setting.tokens
    shards = math.ceil(tokens.captured_rows / config.sequences_per_shard)
    chunks = shards * math.ceil(config.sequences_per_shard / config.sequences_per_chunk)
    made = make_codec(codec, tokens.outputs)
    is_packed = config.pack and packable(made)
    # Columns of fixed width have a place for every position, target or not; where most are none,
    # zstd leaves little of theirs.
    few = setting.config.task != "causal-lm"
    share = tokens.targets_share if is_packed or few else 1
    each = payload_at_rest(codec, tokens.outputs, config.pack)
    measured = setting.measured
    if measured is not None and measured.payload_at_rest and measured.codec == codec:
        each = measured.payload_at_rest
    payload = tokens.captured * share * each
    text = tokens.captured * _TEXT_A_BIT * math.log2(tokens.vocab_size)
    frames = tokens.captured_rows * _ROW + chunks * _CHUNK + shards * _SHARD
    total = int(payload + text + frames + (_prior(setting) if is_packed else 0))
    return CacheBytes(codec, made.bytes_per_position, total / tokens.captured, total)


def _prior(setting: Setting) -> int:
    """Bytes of the prior: 3 for each pair of tokens that came three times, one in 24 positions and
    at most 4 million, and 4 for each id."""
    pairs = min(_MOST_PAIRS, setting.tokens.captured // _POSITIONS_A_PAIR)
    return _PRIOR_PAIR * pairs + 4 * setting.tokens.vocab_size


def compared(setting: Setting) -> list[CacheBytes]:
    """The config's codec, then others that might be taken instead."""
    config = setting.config.cache
    others: list[CodecConfig] = [
        VaroptCodec(),
        VaroptCodec(k=32),
        SampleCodec(),
        TopkCodec(),
        FullCodec(),
    ]
    codecs = list(dict.fromkeys([config.codec, *others]))
    largest = setting.tokens.outputs
    fitting = [c for c in codecs if getattr(c, "k", 1) <= largest]
    return [cache_bytes(config, codec, setting) for codec in fitting]


def passes(setting: Setting) -> float:
    """How often a student meets each cached row: steps times rows of a step over rows cached."""
    training = setting.config.distill.training
    return training.steps * training.global_batch_size / setting.tokens.captured_rows


def requests(setting: Setting) -> Requests:
    """What the store sees.

    Capture: a shard is three puts (data, index, commit) and four heads (sizes before and after the
    commit); a start lists commits, 1,000 an answer; the manifest takes two puts and reads every
    commit. A student: every rank reads every shard's index for the curriculum; every machine reads
    a chunk once a pass, and only in the first where the decoded cache fits its disk; the baseline
    meets the same chunks again.
    """
    config, tokens = setting.config, setting.tokens
    cache, distill = config.cache, config.distill
    shards = math.ceil(tokens.captured_rows / cache.sequences_per_shard)
    chunks = shards * math.ceil(cache.sequences_per_shard / cache.sequences_per_chunk)
    own = cache_bytes(cache, cache.codec, setting)
    row = tokens.seq_len * (own.decoded_position + 9)
    on_disk = distill.cache_disk_gib * 2**30 >= tokens.captured_rows * row
    arms = 2 if distill.baseline else 1
    met = min(1.0, passes(setting)) if on_disk else arms * passes(setting)
    machines = max(1, math.ceil(distill.workers.count / setting.hardware.devices_per_node))
    # A batch's rows lie in chunks all over: each machine of several meets nearly all of them.
    read = met * machines
    captures = config.cache.reuse is None
    lists = math.ceil(shards / _LIST) * 2
    return Requests(
        puts=(3 * shards + 4) * captures,
        heads=4 * shards * captures,
        lists=lists,
        gets=int(shards * captures + shards * distill.workers.count + read * chunks),
        written_bytes=own.at_rest * captures,
        read_bytes=int(read * own.at_rest),
    )
