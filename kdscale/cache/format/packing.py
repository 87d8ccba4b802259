"""Stored form of sampled ids: 12 ids of a position in about 14 bytes instead of 24.

1. An id becomes its rank under the position's token (prior.py).
2. Ids that are a set have no order, so they are sorted by rank and only the gaps are kept.
3. A gap becomes a class, a small float of five bits of exponent and two of mantissa, and the bits
   that the class leaves open.

Positions are grouped by how many of their ids are ordered, and each slot of a group is a stream of
its own, whose skew zstd's entropy stage takes out; the open bits are stored as they are. An
asymmetric numeral system (constriction) in zstd's place takes 0.8 % fewer bytes of such a stream
and thirty times as long to decode it. Unpacked ids of a set come in rising rank instead of the
order in which they were drawn, which means the same; everything else comes back bit by bit.
"""

import math
import struct
from dataclasses import dataclass
from typing import TypeGuard

import numpy as np
import pyarrow as pa
import torch

from kdscale.cache.codecs import Codec
from kdscale.cache.codecs.base import SampledIds
from kdscale.cache.codecs.id_bytes import from_bytes, id_bytes
from kdscale.cache.format.prior import Prior
from kdscale.cache.jit import compiled

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

# A number of at most 24 bits and the shift of up to seven bits before it lie within four bytes.
_WINDOW_BYTES = 4

# Positions, and bytes of the streams, which a column of Arrow keeps below 2 GiB. The bit above says
# that the first stream, how many ids of a position are ordered, is of four bytes instead of one.
_LENGTHS = struct.Struct("<II")
_WIDE = 1 << 31


def packable(codec: Codec) -> TypeGuard[SampledIds]:
    """Return whether the codec's payload ends in sampled ids: others are stored as they are."""
    return hasattr(codec, "ordered_ids")


@dataclass(frozen=True, eq=False)
class Packing:
    """Stored form of one codec's payload under one prior."""

    codec: SampledIds
    prior: Prior

    def pack(self, contexts: np.ndarray, payload: np.ndarray) -> bytes:
        """Pack the payload [P, bytes] uint8 of positions whose tokens are `contexts` [P]."""
        codec = self.codec
        ordered = codec.ordered_ids(torch.from_numpy(payload)).numpy()
        wide = _WIDE if ordered.max(initial=0) > 255 else 0
        by_group = np.argsort(ordered, kind="stable")
        payload = payload[by_group]
        held = torch.from_numpy(payload[:, codec.prefix_bytes :])
        ids = from_bytes(held, id_bytes(codec.vocab_size)).numpy()
        groups = _groups(ordered)
        ranks = self.prior.rank(contexts[by_group], ids)
        numbers = _gaps(ranks, ordered[by_group]).T + 1
        # A float32 holds every number below 2^24; its exponent and mantissa are the class.
        classes = (numbers.astype(np.float32).view(np.int32) >> _SHIFT) - _CLASS_OF_ONE
        planes = [*payload[:, : codec.prefix_bytes].T, *classes.astype(np.uint8)]
        counts = ordered.astype("<u4" if wide else "u1")
        streams = [counts, *(plane[group] for plane in planes for group in groups.values())]
        compressed = b"".join(_ZSTD.compress(s.tobytes(), asbytes=True) for s in streams)
        left = (numbers - _LEAST[classes]).ravel()
        open_bits = join_bits(left, _OPEN_BITS[classes].ravel())
        return _LENGTHS.pack(len(ordered), wide | len(compressed)) + compressed + open_bits

    def unpack(self, contexts: np.ndarray, data: bytes) -> np.ndarray:
        """Invert `pack`: [P, bytes a position] uint8, the ids of a set in rising rank."""
        width = self.codec.prefix_bytes + self.codec.k * id_bytes(self.codec.vocab_size)
        payload = np.empty((len(contexts), width), np.uint8)
        self.unpack_to(payload.reshape(-1), width * np.arange(len(contexts)), contexts, data)
        return payload

    def unpack_to(
        self, memory: np.ndarray, offsets: np.ndarray, contexts: np.ndarray, data: bytes
    ) -> None:
        """Invert `pack` into `memory` ([N] uint8), each position from its offset ([P] int64) on.

        ValueError for bytes that were not packed from P such positions.
        """
        codec, count = self.codec, len(contexts)
        positions, length = _LENGTHS.unpack_from(data)
        counts = np.dtype("<u4" if length & _WIDE else "u1")
        length &= _WIDE - 1
        if positions != count:
            raise ValueError(f"{positions} positions were packed, not {count}")
        # Frames that follow each other are undone by one call, and the groups of a plane touch.
        open_bits = bit_windows(memoryview(data)[_LENGTHS.size + length :])
        compressed = memoryview(data)[_LENGTHS.size : _LENGTHS.size + length]
        shape = (counts.itemsize + codec.prefix_bytes + codec.k, count)
        streams = _ZSTD.decompress(compressed, math.prod(shape), asbytes=True)
        planes = np.frombuffer(streams, np.uint8).reshape(shape)[counts.itemsize :]
        ordered = np.frombuffer(streams, counts, count)
        if planes[-codec.k :].max(initial=0) >= len(_CLASSES):
            raise ValueError("the packed bytes hold classes that there are not")
        by_group = np.argsort(ordered, kind="stable")
        fits = _unpack(
            (codec.prefix_bytes, codec.k, id_bytes(codec.vocab_size)),
            self.prior.starts,
            self.prior.names,
            planes,
            ordered[by_group],
            contexts[by_group],
            open_bits,
            memory,
            offsets[by_group],
        )
        if not fits:
            raise ValueError("ids were packed under another prior")


@compiled
def _unpack(
    sizes: tuple[int, int, int],  # bytes of the prefix, K, bytes of an id (2 or 3)
    starts: np.ndarray,  # [V + 1] int32, see `Prior`
    names: np.ndarray,  # [pairs + V] int32, see `Prior`
    planes: np.ndarray,  # [prefix bytes + K, P] uint8: bytes of the prefix, then classes
    ordered: np.ndarray,  # [P] unsigned
    contexts: np.ndarray,  # [P] integers
    open_bits: np.ndarray,  # uint32, see `bit_windows`
    memory: np.ndarray,  # uint8
    offsets: np.ndarray,  # [P] int64
) -> bool:
    """Unpack position after position, so that its state stays in registers.

    False where the bits or the prior do not reach.
    """
    prefix_bytes, k, size = sizes
    classes = planes[prefix_bytes:]
    # The open bits are stored slot by slot, so each slot has its own cursor.
    cursors = np.zeros(k + 1, np.int64)
    for slot in range(k):
        cursors[slot + 1] = cursors[slot]
        for one in classes[slot]:
            cursors[slot + 1] += _OPEN_BITS[one]
    if cursors[k] > 8 * (len(open_bits) - 1):
        return False
    followers = len(names) - len(starts) + 1
    for place in range(len(contexts)):
        at = offsets[place]
        for byte in range(prefix_bytes):
            memory[at] = planes[byte, place]
            at += 1
        first = starts[contexts[place]]
        count = starts[contexts[place] + 1] - first
        rank = 0
        for slot in range(k):
            one = classes[slot, place]
            cursor, width = cursors[slot], _OPEN_BITS[one]
            cursors[slot] = cursor + width
            window = np.int64(open_bits[cursor >> 3]) >> (cursor & 7)
            number = _LEAST[one] + (window & ((np.int64(1) << width) - 1))
            rank = number - 1 + (rank if slot > np.int64(ordered[place]) else 0)
            named = rank + (first if rank < count else followers - count)
            if named >= len(names):
                return False
            name = names[named]
            memory[at] = name & 255
            memory[at + 1] = (name >> 8) & 255
            if size == 3:
                memory[at + 2] = name >> 16
            at += size
    return True


def _groups(ordered: np.ndarray) -> dict[int, slice]:
    """Return where the positions with each number of ordered ids lie once they are sorted by it."""
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


def join_bits(values: np.ndarray, widths: np.ndarray) -> bytes:
    """Join [N] int32 numbers, each of as many bits as `widths` [N] gives, 0 to 24.

    Bits count from the least significant one of the first byte.
    """
    offsets = np.cumsum(widths, dtype=np.int64) - widths
    shifted = values.astype(np.int64) << (offsets & 7)
    size = (int(widths.sum()) + 7) // 8
    joined = np.zeros(size + _WINDOW_BYTES)
    for byte in range(_WINDOW_BYTES):
        # Neighbours share a byte but never a bit, so that adding them is joining them.
        part = (shifted >> (8 * byte)) & 0xFF
        joined += np.bincount((offsets >> 3) + byte, part, len(joined))
    return joined[:size].astype(np.uint8).tobytes()


def bit_windows(stream: bytes | memoryview) -> np.ndarray:
    """Return the four bytes from each byte of `stream` on, [bytes + 1] uint32.

    The number of `width` bits at bit `offset` is (windows[offset >> 3] >> (offset & 7)) & ((1
    << width) - 1).
    """
    padded = bytes(stream) + bytes(_WINDOW_BYTES)
    return np.ndarray(len(stream) + 1, "<u4", padded, strides=(1,))
