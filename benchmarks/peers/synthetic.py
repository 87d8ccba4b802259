"""Records like those of a real cache, without a teacher.

Tokens follow each other by a made-up language: three out of four come from the 256 ids that the
token before them favours, the others from all ids, both by Zipf's law; ids are by frequency, as a
tokenizer's are. The same probabilities, made sharper and flatter at random, are the teacher's. They
are encoded by the real codec, at one in 32 positions; the other positions take a payload of a
position with the same token. So the payload has the sizes and the statistics that entropy coding
finds in real ones, and no two rows are alike.
"""

import math
from collections.abc import Iterator

import numpy as np
import torch
import xxhash

from benchmarks.peers.contract import PAYLOAD_BYTES, Records
from kdscale.cache.codecs import Codec, make_codec
from kdscale.cache.format.packing import Packing, packable
from kdscale.cache.format.prior import Prior, count_prior
from kdscale.config.cache import VaroptCodec

VOCAB = 49_152
_FAVOURED = 256
_LOCAL_SHARE = 0.75
_ENCODED_SHARE = 32
_ENCODED_AT_ONCE = 64
_PACKED_AT_ONCE = 64
_SHARPNESS = (0.7, 1.6)


def codec() -> Codec:
    """Return the codec of twelve ids of 16 bits and four head values of 8: 28 bytes."""
    return make_codec(VaroptCodec(k=12, head=4, head_bits=8), VOCAB)


def prior(records: Records) -> Prior:
    """Return the prior that the records' payload is packed under."""
    return count_prior([(records.input_ids, records.loss_mask.astype(bool))], VOCAB)


def make_records(rows: int, seq_len: int) -> Records:
    """Return `rows` rows of `seq_len` tokens; equal arguments give equal records."""
    generator = np.random.default_rng(0)
    input_ids = _tokens(generator, rows, seq_len)
    mask = generator.random(input_ids.shape) < 0.95
    mask[:, -1] = False
    digests = [xxhash.xxh3_128_digest(row.tobytes()) for row in input_ids]
    payload = np.zeros((rows, seq_len, PAYLOAD_BYTES), np.uint8)
    payload[mask] = _payload(generator, input_ids[mask])
    records = Records(
        sample_ids=np.frombuffer(b"".join(digests), np.uint8).reshape(rows, 16),
        input_ids=input_ids,
        loss_mask=mask.astype(np.uint8),
        payload=payload,
    )
    _set_stored_order(records)
    return records


def _tokens(generator: np.random.Generator, rows: int, length: int) -> np.ndarray:
    """Return [rows, length] int32."""
    tokens = np.empty((rows, length), np.int32)
    tokens[:, 0] = _zipf(generator, rows, VOCAB)
    for place in range(1, length):
        favoured = _favoured(tokens[:, place - 1], _zipf(generator, rows, _FAVOURED))
        anywhere = _zipf(generator, rows, VOCAB)
        is_local = generator.random(rows) < _LOCAL_SHARE
        tokens[:, place] = np.where(is_local, favoured, anywhere)
    return tokens


def _zipf(generator: np.random.Generator, count: int, size: int) -> np.ndarray:
    """Return ranks below `size`, [count] int64, of probability about 1 / (1 + rank)."""
    return np.floor((size + 1) ** generator.random(count)).astype(np.int64) - 1


def _favoured(contexts: np.ndarray, ranks: np.ndarray) -> np.ndarray:
    """Return the id at each of `ranks` among those that `contexts` favour.

    Frequent ids come more often. It is a multiplicative hash, without a table.
    """
    mixed = (contexts.astype(np.uint64) * 40_503 + ranks.astype(np.uint64)) * 0x9E3779B97F4A7C15
    uniform = (mixed >> np.uint64(11)) * 2.0**-53
    return np.floor((VOCAB + 1) ** uniform).astype(np.int64) - 1


def _payload(generator: np.random.Generator, contexts: np.ndarray) -> np.ndarray:
    """Return [P, 28] uint8 for positions whose tokens are `contexts` [P]."""
    sampled = generator.choice(contexts, max(1, len(contexts) // _ENCODED_SHARE), replace=False)
    sampled.sort()
    encoded = np.concatenate(list(_encoded(generator, sampled)))
    first = np.searchsorted(sampled, contexts, side="left")
    count = np.searchsorted(sampled, contexts, side="right") - first
    pick = first + np.floor(generator.random(len(contexts)) * count).astype(np.int64)
    anyone = generator.integers(0, len(sampled), len(contexts))
    return encoded[np.where(count > 0, pick, anyone)]


def _encoded(generator: np.random.Generator, contexts: np.ndarray) -> Iterator[np.ndarray]:
    """Yield [P, 28] uint8 in pieces."""
    everywhere = _zipf_weights(VOCAB) * (1 - _LOCAL_SHARE)
    ranks, weights = np.arange(_FAVOURED), _zipf_weights(_FAVOURED) * _LOCAL_SHARE
    encoder = codec()
    logits = torch.empty(_ENCODED_AT_ONCE, VOCAB)
    for start in range(0, len(contexts), _ENCODED_AT_ONCE):
        some = contexts[start : start + _ENCODED_AT_ONCE]
        favoured = torch.from_numpy(_favoured(some[:, None], ranks[None]))
        sharpness = torch.from_numpy(generator.uniform(*_SHARPNESS, (len(some), 1))).float()
        uniforms = torch.from_numpy(generator.random((len(some), encoder.streams)))
        torch.mul(everywhere.log(), sharpness, out=logits[: len(some)])
        values = (everywhere[favoured] + weights).log() * sharpness
        logits[: len(some)].scatter_(1, favoured, values)
        yield encoder.encode(logits[: len(some)], uniforms).payload.numpy()


def _zipf_weights(size: int) -> torch.Tensor:
    """Return the probabilities [size] float32 of `_zipf`."""
    edges = torch.arange(size + 1, dtype=torch.float64) + 1
    return (edges.log().diff() / math.log(size + 1)).float()


def _set_stored_order(records: Records) -> None:
    """Put the ids of each position's set in the order in which kdscale stores them, in place.

    The readers' rows are compared byte by byte, and the order of a set means nothing.
    """
    encoder = codec()
    assert packable(encoder)
    packing = Packing(encoder, prior(records))
    for start in range(0, len(records), _PACKED_AT_ONCE):
        rows = slice(start, start + _PACKED_AT_ONCE)
        mask = records.loss_mask[rows].astype(bool)
        contexts = records.input_ids[rows][mask]
        payload = records.payload[rows]
        payload[mask] = packing.unpack(contexts, packing.pack(contexts, payload[mask]))
