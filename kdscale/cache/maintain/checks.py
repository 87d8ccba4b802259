"""One shard against its digests, its index and its codec.

A digest can be right and the writer wrong, so chunks are decoded too: their rows must be those that
the index names, and their targets distributions over the vocabulary.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import torch

from kdscale.cache.codecs import Codec
from kdscale.cache.format.records import Shard
from kdscale.cache.format.shard_file import (
    Layout,
    ShardIndex,
    chunk_digest,
    decode_chunk,
    decode_index,
    object_digest,
)
from kdscale.cache.rows import CachedRows, RowStats
from kdscale.store import Store
from kdscale.types import DenseTargets

# Payload that is decoded at a time; targets take up to some fifty times the bytes.
_PAYLOAD_BYTES = 1 << 20


@dataclass(frozen=True)
class Damage:
    """Something wrong with an object or a record. `shard` is None where all shards share it."""

    shard: int | None
    key: str
    problem: str

    def __str__(self) -> str:
        what = f"{self.key} {self.problem}"
        return what if self.shard is None else f"shard {self.shard}: {what}"


@dataclass
class Tally:
    """Counts of what was read, and the damage in it."""

    objects: int = 0
    chunks: int = 0
    bytes: int = 0
    bad: list[Damage] = field(default_factory=list)

    def add(self, other: "Tally") -> None:
        """Count another's in."""
        self.objects += other.objects
        self.chunks += other.chunks
        self.bytes += other.bytes
        self.bad += other.bad


def fetch(store: Store, shard: int | None, key: str, digest: str, tally: Tally) -> bytes | None:
    """Fetch and count the object at `key`.

    None, with the damage noted, if it is missing or corrupt.
    """
    tally.objects += 1
    try:
        data = store.get(key)
        if object_digest(data) != digest:
            # The damage may be of the way: what the store has decides.
            data = store.get(key)
    except FileNotFoundError:
        tally.bad.append(Damage(shard, key, "is missing"))
        return None
    tally.bytes += len(data)
    if (found := object_digest(data)) != digest:
        problem = f"({len(data)} bytes) has digest {found}, not {digest}"
        tally.bad.append(Damage(shard, key, problem))
    return data


def check_shard(
    store: Store, shard: Shard, rows: int, codec: Codec, layout: Layout | None
) -> Tally:
    """Check both objects of a shard that has `rows` rows in the plan.

    Chunks are decoded where `layout` is given. Memory is that of the data object and of one
    chunk.
    """
    tally = Tally()
    stored = fetch(store, shard.shard, shard.index, shard.index_digest, tally)
    index = None if stored is None or tally.bad else decode_index(stored)
    data = fetch(store, shard.shard, shard.object, shard.digest, tally)
    if index is None or data is None:
        return tally
    tally.chunks = len(index.chunks)
    problems = [*_index_problems(shard, rows, index), *_chunk_problems(data, index, codec, layout)]
    tally.bad += [Damage(shard.shard, shard.object, problem) for problem in problems]
    return tally


def _index_problems(shard: Shard, rows: int, index: ShardIndex) -> Iterator[str]:
    """Return whether manifest, plan, statistics and table of chunks count the same."""
    counted = {shard.rows, rows, len(index.stats), sum(chunk.rows for chunk in index.chunks)}
    if len(counted) > 1:
        yield f"should have {rows} rows; manifest and index say {sorted(counted)}"
    if (targets := int(index.stats.length.sum())) != shard.targets:
        yield f"should have {shard.targets} targets; its index counts {targets}"


def _chunk_problems(
    data: bytes, index: ShardIndex, codec: Codec, layout: Layout | None
) -> Iterator[str]:
    """Yield what is wrong with each chunk of a data object, if the object's own digest is wrong."""
    first = 0
    for chunk in index.chunks:
        part = memoryview(data)[chunk.offset : chunk.offset + chunk.length]
        stats = _slice(index.stats, first, first + chunk.rows)
        first += chunk.rows
        where = f"in its chunk at byte {chunk.offset}"
        if (found := chunk_digest(part)) != chunk.digest:
            yield f"has digest {found}, not {chunk.digest}, {where}"
        elif layout is not None:
            for problem in _content_problems(bytes(part), stats, codec, layout):
                yield f"{problem} {where}"


def _slice(stats: RowStats, start: int, stop: int) -> RowStats:
    columns = (stats.sample_ids, stats.entropy, stats.nll, stats.length)
    return RowStats(*(column[start:stop] for column in columns))


def _content_problems(data: bytes, stats: RowStats, codec: Codec, layout: Layout) -> Iterator[str]:
    """Yield what is wrong inside a chunk with the right digest."""
    try:
        chunk = decode_chunk(data, layout)
        if not _same_rows(chunk, stats):
            yield "holds other rows than its index says"
        elif not _are_distributions(chunk, codec):
            yield "holds targets that are no distribution"
    except Exception as error:  # What a decoder raises on wrong bytes is anybody's guess.
        yield f"cannot be decoded ({type(error).__name__}: {error})"


def _same_rows(chunk: CachedRows, stats: RowStats) -> bool:
    return (
        np.array_equal(chunk.rows.sample_ids, stats.sample_ids)
        and np.array_equal(chunk.entropy, stats.entropy, equal_nan=True)
        and np.array_equal(chunk.nll, stats.nll, equal_nan=True)
        and np.array_equal(chunk.rows.loss_mask.sum(1), stats.length)
    )


def _are_distributions(chunk: CachedRows, codec: Codec) -> bool:
    """Return whether all targets have ids of the vocabulary and probabilities that can be such."""
    payload = chunk.payload[chunk.rows.loss_mask]
    vocab_size = codec.describe()["vocab_size"]
    step = max(1, _PAYLOAD_BYTES // codec.bytes_per_position)
    for start in range(0, len(payload), step):
        targets = codec.decode(torch.from_numpy(payload[start : start + step]))
        if isinstance(targets, DenseTargets):
            fine = not bool(targets.log_probs.isnan().any())
        else:
            known = (targets.ids >= 0) & (targets.ids < vocab_size)
            possible = (targets.probs >= 0) & targets.probs.isfinite()
            fine = bool(known.all() and possible.all())
        if not fine:
            return False
    return True
