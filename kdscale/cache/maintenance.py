"""What an operator does to a cache: look at it, verify it, drop what is damaged."""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from kdscale.cache.codecs import open_codec
from kdscale.cache.container import block_digest, object_digest
from kdscale.cache.manifest import load_manifest
from kdscale.cache.plan import load_plan
from kdscale.cache.reader import CacheReader
from kdscale.cache.records import Commit, Manifest, commit_key, read_record
from kdscale.errors import KdscaleError
from kdscale.store import Store
from kdscale.types import DenseTargets, SparseTargets

_SHOWN_TARGETS = 8
_SHOWN_CONTEXT = 32


@dataclass(frozen=True)
class Damage:
    """Something wrong with a unit."""

    unit: int
    key: str
    problem: str

    def __str__(self) -> str:
        return f"unit {self.unit}: {self.key} {self.problem}"


@dataclass(frozen=True)
class VerifyReport:
    """What `verify` read, and what of it is damaged."""

    objects: int
    blocks: int
    bytes: int
    bad: list[Damage]


def inspect(store: Store) -> dict[str, Any]:
    """The facts of a published cache, from its manifest alone. Sizes in bytes."""
    manifest = load_manifest(store)
    positions = manifest.rows * int(manifest.identity["row_length"])
    stored = sum(unit.length + unit.index_length for unit in manifest.units)
    return {
        "url": str(store),
        "version": manifest.version,
        "created": manifest.created,
        "fingerprint": manifest.fingerprint,
        "identity": manifest.identity,
        "codec": manifest.identity["codec"],
        "rows": manifest.rows,
        "positions": positions,
        "targets": sum(unit.targets for unit in manifest.units),
        "units": len(manifest.units),
        "blocks": sum(len(unit.blocks) for unit in manifest.units),
        "bytes": stored,
        "payload_bytes_per_position": open_codec(manifest.identity["codec"]).bytes_per_position,
        "bytes_per_position": stored / positions,
    }


def sample(
    reader: CacheReader, decode: Callable[[list[int]], str], count: int
) -> list[dict[str, Any]]:
    """`count` positions from rows spread over the cache, for a person to read.

    decode: a tokenizer's ids -> text. Each position gives its row and position, the text before it,
    the token that follows, and the most probable targets with their probabilities.
    """
    shown = []
    for index in np.linspace(0, len(reader) - 1, min(count, len(reader))).astype(np.int64):
        cached = reader.read(np.array([index]))
        ids = cached.rows.input_ids[0]
        targets = np.flatnonzero(cached.rows.loss_mask[0])
        if len(targets):
            at = int(targets[len(targets) // 2])
            payload = torch.from_numpy(cached.payload[0, at])
            shown.append(
                {
                    "row": int(index),
                    "position": at,
                    "context": decode(ids[max(0, at + 1 - _SHOWN_CONTEXT) : at + 1].tolist()),
                    "token": decode([int(ids[at + 1])]),
                    "targets": [
                        (decode([token]), probability)
                        for token, probability in _most_probable(reader.codec.decode(payload))
                    ],
                }
            )
    return shown


def verify(
    store: Store, workers: int = 8, progress: Callable[[int, int], None] | None = None
) -> VerifyReport:
    """Read all of the latest manifest's objects and hold them against their digests.

    Also checks that each unit's commit is the manifest's and that no unit of the plan is left out.
    progress: called with (units done, units in all). Damage is reported, not raised.
    """
    manifest = load_manifest(store)
    bad = _against_plan(store, manifest)
    size = 0
    with ThreadPoolExecutor(workers) as pool:
        futures = [pool.submit(_check_unit, store, unit) for unit in manifest.units]
        for done, future in enumerate(as_completed(futures), start=1):
            read, damage = future.result()
            size += read
            bad += damage
            if progress:
                progress(done, len(futures))
    return VerifyReport(
        objects=2 * len(manifest.units),
        blocks=sum(len(unit.blocks) for unit in manifest.units),
        bytes=size,
        bad=sorted(bad, key=lambda damage: (damage.unit, damage.key)),
    )


def repair(store: Store, bad: Sequence[Damage]) -> list[int]:
    """Withdraw the commits of damaged units, so that the cache stage captures them again and
    publishes a new manifest. Gives the units' numbers; deletes no data."""
    units = sorted({damage.unit for damage in bad})
    for unit in units:
        store.delete(commit_key(unit))
    return units


def _most_probable(targets: SparseTargets | DenseTargets) -> list[tuple[int, float]]:
    """Ids and probabilities of one position, an id once, from the most probable down."""
    if isinstance(targets, DenseTargets):
        top = targets.log_probs.exp().topk(min(_SHOWN_TARGETS, len(targets.log_probs)))
        return list(zip(top.indices.tolist(), top.values.tolist(), strict=True))
    summed: dict[int, float] = {}
    for token, probability in zip(targets.ids.tolist(), targets.probs.tolist(), strict=True):
        summed[token] = summed.get(token, 0.0) + probability
    return sorted(summed.items(), key=lambda pair: -pair[1])[:_SHOWN_TARGETS]


def _against_plan(store: Store, manifest: Manifest) -> list[Damage]:
    """Units that the plan has and the manifest lacks. (No manifest names a unit twice.)"""
    plan = load_plan(store)
    planned = -(-plan.rows // plan.rows_per_unit)
    return [
        Damage(unit, commit_key(unit), "is in the plan but not in the manifest")
        for unit in range(len(manifest.units), planned)
    ]


def _check_unit(store: Store, unit: Commit) -> tuple[int, list[Damage]]:
    """Bytes read and damage found."""
    damage = [Damage(unit.unit, *found) for found in _check_commit(store, unit)]
    size = 0
    for key, digest in ((unit.object, unit.digest), (unit.index, unit.index_digest)):
        try:
            data = store.get(key)
        except FileNotFoundError:
            damage.append(Damage(unit.unit, key, "is missing"))
            continue
        size += len(data)
        if (found := object_digest(data)) != digest:
            damage.append(Damage(unit.unit, key, f"has digest {found}, not {digest}"))
        if key == unit.object:
            damage += [Damage(unit.unit, key, problem) for problem in _check_blocks(data, unit)]
    return size, damage


def _check_commit(store: Store, unit: Commit) -> Iterator[tuple[str, str]]:
    """Where the stored commit is not the manifest's: its key and what is wrong."""
    key = commit_key(unit.unit)
    try:
        if read_record(Commit, store, key) != unit:
            yield key, "is of another attempt than the manifest's"
    except FileNotFoundError:
        yield key, "is missing"
    except KdscaleError as error:
        yield key, error.problem


def _check_blocks(data: bytes, unit: Commit) -> Iterator[str]:
    """What is wrong with the blocks of a data object."""
    for block in unit.blocks:
        found = block_digest(memoryview(data)[block.offset : block.offset + block.length])
        if found != block.digest:
            yield f"has digest {found}, not {block.digest}, in its block at byte {block.offset}"
