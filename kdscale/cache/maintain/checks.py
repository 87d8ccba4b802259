"""One unit against its digests, its index and its codec.

A digest can be right and the writer wrong, so blocks are decoded too: their rows must be those that
the index names, and their targets distributions over the vocabulary.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import torch

from kdscale.cache.codecs import Codec
from kdscale.cache.format.records import Unit
from kdscale.cache.format.shard_file import (
    Layout,
    UnitIndex,
    block_digest,
    decode_block,
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
    """Something wrong with an object or a record. `unit` is None where all units share it."""

    unit: int | None
    key: str
    problem: str

    def __str__(self) -> str:
        what = f"{self.key} {self.problem}"
        return what if self.unit is None else f"unit {self.unit}: {what}"


@dataclass
class Tally:
    """What was read, and what of it is damaged."""

    objects: int = 0
    blocks: int = 0
    bytes: int = 0
    bad: list[Damage] = field(default_factory=list)

    def add(self, other: "Tally") -> None:
        """Count another's in."""
        self.objects += other.objects
        self.blocks += other.blocks
        self.bytes += other.bytes
        self.bad += other.bad


def fetch(store: Store, unit: int | None, key: str, digest: str, tally: Tally) -> bytes | None:
    """The object at `key`, counted and held against its xxh3_128; None where it is missing."""
    tally.objects += 1
    try:
        data = store.get(key)
        if object_digest(data) != digest:
            # The damage may be of the way: what the store has decides.
            data = store.get(key)
    except FileNotFoundError:
        tally.bad.append(Damage(unit, key, "is missing"))
        return None
    tally.bytes += len(data)
    if (found := object_digest(data)) != digest:
        problem = f"({len(data)} bytes) has digest {found}, not {digest}"
        tally.bad.append(Damage(unit, key, problem))
    return data


def check_unit(store: Store, unit: Unit, rows: int, codec: Codec, layout: Layout | None) -> Tally:
    """Both objects of a unit that the plan gives `rows` rows. Blocks are decoded where `layout` is
    given. Memory is that of the data object and of one block."""
    tally = Tally()
    stored = fetch(store, unit.unit, unit.index, unit.index_digest, tally)
    index = None if stored is None or tally.bad else decode_index(stored)
    data = fetch(store, unit.unit, unit.object, unit.digest, tally)
    if index is None or data is None:
        return tally
    tally.blocks = len(index.blocks)
    problems = [*_index_problems(unit, rows, index), *_block_problems(data, index, codec, layout)]
    tally.bad += [Damage(unit.unit, unit.object, problem) for problem in problems]
    return tally


def _index_problems(unit: Unit, rows: int, index: UnitIndex) -> Iterator[str]:
    """Whether manifest, plan, statistics and table of blocks count the same."""
    counted = {unit.rows, rows, len(index.stats), sum(block.rows for block in index.blocks)}
    if len(counted) > 1:
        yield f"should have {rows} rows; manifest and index say {sorted(counted)}"
    if (targets := int(index.stats.length.sum())) != unit.targets:
        yield f"should have {unit.targets} targets; its index counts {targets}"


def _block_problems(
    data: bytes, index: UnitIndex, codec: Codec, layout: Layout | None
) -> Iterator[str]:
    """What is wrong with each block of a data object, wherever the object's own digest is wrong."""
    first = 0
    for block in index.blocks:
        part = memoryview(data)[block.offset : block.offset + block.length]
        stats = _slice(index.stats, first, first + block.rows)
        first += block.rows
        where = f"in its block at byte {block.offset}"
        if (found := block_digest(part)) != block.digest:
            yield f"has digest {found}, not {block.digest}, {where}"
        elif layout is not None:
            for problem in _content_problems(bytes(part), stats, codec, layout):
                yield f"{problem} {where}"


def _slice(stats: RowStats, start: int, stop: int) -> RowStats:
    columns = (stats.sample_ids, stats.entropy, stats.nll, stats.length)
    return RowStats(*(column[start:stop] for column in columns))


def _content_problems(data: bytes, stats: RowStats, codec: Codec, layout: Layout) -> Iterator[str]:
    """What a block with the right digest holds that it should not."""
    try:
        block = decode_block(data, layout)
        if not _same_rows(block, stats):
            yield "holds other rows than its index says"
        elif not _are_distributions(block, codec):
            yield "holds targets that are no distribution"
    except Exception as error:  # What a decoder raises on wrong bytes is anybody's guess.
        yield f"cannot be decoded ({type(error).__name__}: {error})"


def _same_rows(block: CachedRows, stats: RowStats) -> bool:
    return (
        np.array_equal(block.rows.sample_ids, stats.sample_ids)
        and np.array_equal(block.entropy, stats.entropy, equal_nan=True)
        and np.array_equal(block.nll, stats.nll, equal_nan=True)
        and np.array_equal(block.rows.loss_mask.sum(1), stats.length)
    )


def _are_distributions(block: CachedRows, codec: Codec) -> bool:
    """Whether all targets have ids of the vocabulary and probabilities that can be such."""
    payload = block.payload[block.rows.loss_mask]
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
