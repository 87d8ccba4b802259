"""Bytes of a cache, in memory and stored, and the requests that a store sees."""

import math
from dataclasses import dataclass

import numpy as np

from kdscale.cache.codecs import make_codec
from kdscale.cache.codecs.id_bytes import id_bytes
from kdscale.cache.format.packing import packable
from kdscale.config.cache import (
    CacheConfig,
    CodecConfig,
    FullCodec,
    SampleCodec,
    TopkCodec,
    VaroptCodec,
)
from kdscale.plan.inputs import PlanInputs

# Payload stored over payload with ids of log2(V) bits, by ids or draws; measured on SmolLM2-135M
# over BBC news, benchmarks/results/codec_fidelity.json. Packed payloads shrink with the number of
# ids; the order and the values of topk leave zstd little to find.
_RATIOS = {
    "varopt": ((3, 0.55), (8, 0.60), (12, 0.59), (16, 0.58), (24, 0.57), (48, 0.51), (64, 0.48)),
    "sample": ((4, 0.50), (12, 0.42), (25, 0.36), (50, 0.31), (100, 0.26)),
    "topk": ((3, 0.85), (12, 0.88), (50, 0.89)),
    "full": ((1, 0.85),),
}
# Payload of codecs that sample, stored as it is (cache.pack: false): random bits.
_UNPACKED = 0.97
# Tokens, segments and masks of a position, zstd-compressed, for each bit of log2(V).
_TEXT_A_BIT = 0.11
# Framing bytes, see cache/format: of a sequence its statistics, in the index and in its chunk; of a
# chunk the headers of its message and columns, and its line in two tables; of a shard two schemas
# and its line in the manifest.
_SEQUENCE, _CHUNK, _SHARD = 60, 1070, 3600
# A pair of tokens in the prior: its bytes, and positions for each pair that came often enough.
_PRIOR_PAIR, _POSITIONS_A_PAIR, _MOST_PAIRS = 3, 24, 4 << 20
_KEYS_A_LIST = 1000


@dataclass(frozen=True)
class CacheBytes:
    """Size of a codec's cache; `stored` includes prior, tokens and index."""

    codec: CodecConfig
    in_memory_position: float
    stored_position: float
    stored: int


@dataclass(frozen=True)
class Requests:
    """Requests of the cache's capture and of one student (with its baseline) that reads it."""

    puts: int
    heads: int
    lists: int
    gets: int
    written_bytes: int
    read_bytes: int


def stored_payload(codec: CodecConfig, vocab_size: int, pack: bool = True) -> float:
    """Return the stored bytes of a position's payload.

    Bytes in memory, with ids of log2(V) bits as compression takes the others out, times the
    measured ratio of the codec's family at its number of ids, on straight lines between those
    measured.
    """
    made = make_codec(codec, vocab_size)
    ids = codec.draws if isinstance(codec, SampleCodec) else getattr(codec, "k", 0)
    unused_bits = 8 * id_bytes(vocab_size) - (vocab_size - 1).bit_length()
    used = made.bytes_per_position - ids * unused_bits / 8
    if packable(made) and not pack:
        return _UNPACKED * used
    sizes, ratios = np.array(_RATIOS[codec.kind]).T
    return used * float(np.interp(ids, sizes, ratios))


def cache_bytes(config: CacheConfig, codec: CodecConfig, inputs: PlanInputs) -> CacheBytes:
    """Return the size of a whole cache of `codec`.

    Targets x payload + positions x 0.11 log2(V) bytes of tokens and masks + 60 bytes a sequence +
    1,070 a chunk + 3,600 a shard + the prior of codecs that are packed: 3 bytes for each pair of
    tokens that came three times, one in 24 positions and at most 4 million, and 4 for each id. The
    payload is the calibration's of this teacher, text and codec, else `stored_payload`.
    """
    tokens, measured = inputs.tokens, inputs.measured
    made = make_codec(codec, tokens.outputs)
    is_packed = config.pack and packable(made)
    # Columns of fixed width have a place for every position, target or not; where most are none,
    # zstd leaves little of theirs.
    few = inputs.config.task != "causal-lm"
    share = tokens.targets_share if is_packed or few else 1
    each = stored_payload(codec, tokens.outputs, config.pack)
    if measured is not None and measured.stored_payload and measured.codec == codec:
        each = measured.stored_payload
    total = tokens.captured * (share * each + _TEXT_A_BIT * math.log2(tokens.vocab_size))
    total += tokens.captured_rows * _SEQUENCE
    total += inputs.cache_chunks * _CHUNK + inputs.cache_shards * _SHARD
    if is_packed:
        pairs = min(_MOST_PAIRS, tokens.captured // _POSITIONS_A_PAIR)
        total += _PRIOR_PAIR * pairs + 4 * tokens.vocab_size
    total = int(total)
    return CacheBytes(codec, made.bytes_per_position, total / tokens.captured, total)


def compared(inputs: PlanInputs) -> list[CacheBytes]:
    """Return the sizes of the config's codec, then of alternatives to it."""
    config = inputs.config.cache
    others: list[CodecConfig] = [
        VaroptCodec(),
        VaroptCodec(k=32),
        SampleCodec(),
        TopkCodec(),
        FullCodec(),
    ]
    codecs: dict[CodecConfig, None] = dict.fromkeys([config.codec, *others])
    fitting = [codec for codec in codecs if getattr(codec, "k", 1) <= inputs.tokens.outputs]
    return [cache_bytes(config, codec, inputs) for codec in fitting]


def passes(inputs: PlanInputs) -> float:
    """Return how often a student sees each cached sequence: sequences of all steps over cached."""
    training = inputs.config.distill.training
    return training.steps * training.global_batch_size / inputs.tokens.captured_rows


def requests(inputs: PlanInputs) -> Requests:
    """Return the requests that the store sees.

    Capture: a shard is three puts (data, index, commit) and four heads (sizes before and after the
    commit); a start lists commits, 1,000 an answer; the manifest takes two puts and reads every
    commit. A student: every rank reads every shard's index for the curriculum; every machine reads
    a chunk once a pass, and only in the first where the cache in memory fits its disk; the baseline
    reads the same chunks again.
    """
    config, tokens = inputs.config, inputs.tokens
    shards, distill = inputs.cache_shards, config.distill
    own = cache_bytes(config.cache, config.cache.codec, inputs)
    row = tokens.seq_len * (own.in_memory_position + 9)
    on_disk = distill.cache_disk_gib * 2**30 >= tokens.captured_rows * row
    reads = min(1.0, passes(inputs)) if on_disk else inputs.students * passes(inputs)
    # A batch's sequences lie in chunks all over: each of several machines reads nearly all of them.
    reads *= inputs.machines(distill.workers.count)
    captures = config.cache.reuse is None
    return Requests(
        puts=(3 * shards + 4) * captures,
        heads=4 * shards * captures,
        lists=-(-shards // _KEYS_A_LIST) * 2,
        gets=int(shards * captures + shards * distill.workers.count + reads * inputs.cache_chunks),
        written_bytes=own.stored * captures,
        read_bytes=int(reads * own.stored),
    )
