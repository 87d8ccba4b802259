"""Sampled ids at rest: 12 ids of a position in about 14 bytes instead of 24.

1. An id becomes its rank under the position's token (prior.py).
2. Ids that are a set have no order, so they are sorted by rank and only the gaps are kept.
3. A gap becomes a class, a small float of five bits of exponent and two of mantissa, and the bits
   that the class leaves open.

Positions are grouped by how many of their ids are ordered, and each slot of a group is a stream of
its own, whose skew zstd's entropy stage takes out; the open bits are stored as they are. An
asymmetric numeral system (constriction) in zstd's place takes 0.8 % fewer bytes of such a stream
and thirty times as long to decode it. Unpacked ids of a set stand in rising rank instead of the
order in which they were drawn, which means the same; everything else comes back bit by bit.
"""

import struct
from dataclasses import dataclass
from typing import TypeGuard

import numpy as np
import pyarrow as pa
import torch

from kdscale.cache import bitstream
from kdscale.cache.codecs import Codec, bits
from kdscale.cache.codecs.base import SampledIds
from kdscale.cache.prior import Prior

_ZSTD = pa.Codec("zstd", 3)

# A float32's bits above this one are its exponent and the mantissa that a class keeps: two bits,
# as three save 0.3 % and double the tables.
_MANTISSA = 2
_SHIFT = 23 - _MANTISSA
_CLASS_OF_ONE = 127 << _MANTISSA

_CLASSES = np.arange(25 << _MANTISSA, dtype=np.int32)
_OPEN_BITS = np.maximum((_CLASSES >> _MANTISSA) - _MANTISSA, 0)
_LEADING = (1 << _MANTISSA) + (_CLASSES & ((1 << _MANTISSA) - 1))
# The least number of each class.
_LEAST = (_LEADING << (_CLASSES >> _MANTISSA)) >> _MANTISSA

_LENGTHS = struct.Struct("<II")


def packable(codec: Codec) -> TypeGuard[SampledIds]:
    """Whether the codec's payload ends in sampled ids: others are stored as they are."""
    return hasattr(codec, "ordered_ids")


@dataclass(frozen=True, eq=False)
class Packing:
    """How the payload of one codec is stored under one prior."""

    codec: SampledIds
    prior: Prior

    def pack(self, contexts: np.ndarray, payload: np.ndarray) -> bytes:
        """The payload [P, bytes a position] uint8 of positions whose tokens are `contexts` [P]."""
        codec = self.codec
        ordered = codec.ordered_ids(torch.from_numpy(payload)).numpy().astype(np.uint8)
        by_group = np.argsort(ordered, kind="stable")
        payload = payload[by_group]
        packed_ids = torch.from_numpy(payload[:, codec.prefix_bytes :])
        ids = bits.unpack(packed_ids, codec.k, codec.id_width).numpy()
        groups = _groups(ordered)
        ranks = self.prior.rank(contexts[by_group], ids)
        numbers = _gaps(ranks, ordered[by_group]).T + 1
        # A float32 holds every number below 2^24; its exponent and mantissa are the class.
        classes = (numbers.astype(np.float32).view(np.int32) >> _SHIFT) - _CLASS_OF_ONE
        planes = [*payload[:, : codec.prefix_bytes].T, *classes.astype(np.uint8)]
        streams = [ordered, *(plane[group] for plane in planes for group in groups.values())]
        left = (numbers - _LEAST[classes]).ravel()
        open_bits = bitstream.join(left, _OPEN_BITS[classes].ravel())
        return b"".join([*map(_compressed, streams), open_bits])

    def unpack(self, contexts: np.ndarray, data: bytes) -> np.ndarray:
        """The inverse of `pack`: [P, bytes a position] uint8, the ids of a set in rising rank."""
        codec, count = self.codec, len(contexts)
        streams = _Streams(data)
        ordered = streams.next()
        groups = _groups(ordered)
        planes = np.empty((codec.prefix_bytes + codec.k, count), np.uint8)
        for plane in planes:
            for group in groups.values():
                plane[group] = streams.next()
        by_group = np.argsort(ordered, kind="stable")
        identify = self.prior.identifier(contexts[by_group])
        open_bits = bitstream.Reader(streams.rest)
        ids = bitstream.Columns(count, codec.k, codec.id_width)
        ranks = np.zeros(count, np.int32)
        # Slot by slot: what a step works on then fits the processor's cache.
        for slot, classes in enumerate(planes[codec.prefix_bytes :]):
            gaps = np.take(_LEAST, classes) - 1
            gaps += open_bits.read(np.take(_OPEN_BITS, classes))
            for first, group in groups.items():
                if first < slot:
                    gaps[group] += ranks[group]
            ranks = gaps
            ids.append(identify(ranks))
        prefix = planes[: codec.prefix_bytes].T
        payload = np.empty((count, prefix.shape[1] + ids.bytes), np.uint8)
        payload[by_group] = np.concatenate([prefix, ids.packed()], axis=1)
        return payload


def _groups(ordered: np.ndarray) -> dict[int, slice]:
    """Where the positions with each number of ordered ids lie once they are sorted by it."""
    ends = np.cumsum(np.bincount(ordered)).tolist()
    starts = [0, *ends]
    return {
        number: slice(start, end)
        for number, (start, end) in enumerate(zip(starts, ends, strict=False))
        if end > start
    }


def _gaps(ranks: np.ndarray, ordered: np.ndarray) -> np.ndarray:
    """[P, K] ranks with those of a set sorted, each then less the one before it in the set."""
    in_set = np.arange(ranks.shape[1]) >= ordered[:, None]
    # Sorted with the set, the ordered ids' places come first and are put back after.
    rising = np.sort(np.where(in_set, ranks, -1), axis=1)
    before = np.where(in_set[:, :-1], rising[:, :-1], 0)
    gaps = np.where(in_set, rising, ranks)
    gaps[:, 1:] -= before
    return gaps


def _compressed(stream: np.ndarray) -> bytes:
    """A stream of bytes behind its length and the length of its compressed form."""
    data = _ZSTD.compress(stream.tobytes(), asbytes=True)
    return _LENGTHS.pack(len(stream), len(data)) + data


class _Streams:
    """Reads one stream after the other."""

    def __init__(self, data: bytes) -> None:
        self.rest = memoryview(data)

    def next(self) -> np.ndarray:
        """The next stream, [its length] uint8."""
        count, length = _LENGTHS.unpack_from(self.rest)
        start = _LENGTHS.size
        data = _ZSTD.decompress(self.rest[start : start + length], count, asbytes=True)
        self.rest = self.rest[start + length :]
        return np.frombuffer(data, np.uint8)
