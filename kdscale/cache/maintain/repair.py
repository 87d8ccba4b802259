"""Repair of a cache: what it can restore from itself is restored, the rest is captured again.

The teacher is expensive, so a shard is captured again only where neither its commit nor the
manifest names intact objects; withdrawing its commit is all it takes. Plans and manifests follow
from each other and from the commits, a prior from the tokens of the rows, so these are written
again. Where records disagree, intact objects decide first, then the manifest.
"""

import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import takewhile

import numpy as np
import pyarrow as pa

from kdscale.cache.commit.manifest import (
    Manifest,
    load_manifest,
    manifest_key,
    manifest_versions,
    publish,
)
from kdscale.cache.commit.plan import load_plans, plan_key
from kdscale.cache.commit.writer import committed_shards
from kdscale.cache.format.checked_read import read_object
from kdscale.cache.format.columns import from_lists
from kdscale.cache.format.prior import count_prior, counted_rows, encode_prior
from kdscale.cache.format.records import (
    Commit,
    Generation,
    PlanRecord,
    Shard,
    commit_key,
    read_record,
    record_bytes,
)
from kdscale.cache.format.shard_file import object_digest
from kdscale.cache.maintain.checks import Damage
from kdscale.cache.maintain.verify import ShardChecker, verify
from kdscale.cache.prefetch import ordered_map
from kdscale.errors import KdscaleError
from kdscale.store import PutIfAbsent, Store

_THREADS = 4


@dataclass(frozen=True)
class RepairReport:
    """Result of `repair`."""

    restored: list[str]
    """Keys that are right again, without the teacher."""

    withdrawn: list[int]
    """Shards that the cache stage has to capture again."""

    lost: list[Damage]
    """Damage that cannot be repaired here. Shards are then left as they are."""


def repair(
    store: Store,
    *,
    workers: int = 8,
    put_if_absent: PutIfAbsent | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> RepairReport:
    """Verify the latest manifest, and repair or withdraw what is damaged.

    put_if_absent: replaces the store's own, see `kdscale.workers.commit_actor`. Safe to
    run again after it was killed. KdscaleError where there is no cache, or where one without
    a readable manifest lacks shards.
    """
    bad = verify(store, workers=workers, progress=progress).bad
    restored: list[str] = []
    while shared := [damage for damage in bad if damage.shard is None]:
        more = [key for key in _restore_shared(store, shared, put_if_absent) if key not in restored]
        if not more:
            return RepairReport(restored, [], shared)
        restored += more
        # What the damage hid can be seen only now.
        bad = verify(store, workers=workers, progress=progress).bad
    if not bad:
        return RepairReport(restored, [], [])
    kept, withdrawn = _settle(store, bad, put_if_absent or store.put_if_absent)
    return RepairReport(restored + kept, withdrawn, [])


# Shards


def _settle(
    store: Store, bad: Sequence[Damage], put_if_absent: PutIfAbsent
) -> tuple[list[str], list[int]]:
    """Give each damaged shard a commit that names intact objects, or none.

    Returns the commits that were kept or written, and the shards withdrawn.
    """
    manifest = load_manifest(store)
    checker = ShardChecker(store, manifest, with_commit=False)
    kept, withdrawn = [], []
    for number in sorted({damage.shard for damage in bad if damage.shard is not None}):
        key = commit_key(number)
        named = manifest.shards[number]
        committed = _commit_of(store, number)
        if committed is not None and _is_intact(checker, committed):
            kept.append(key)
        elif committed != named and _is_intact(checker, named):
            store.delete(key)
            commit = Commit(**named.model_dump(), attempt=f"repair-{uuid.uuid4().hex}", seconds=0)
            put_if_absent(key, record_bytes(commit))
            kept.append(key)
        else:
            store.delete(key)
            withdrawn.append(number)
    if not withdrawn:
        # Otherwise the cache stage does it, once it has captured them.
        publish(store, manifest.generations[-1], put_if_absent)
    return kept, withdrawn


def _commit_of(store: Store, number: int) -> Shard | None:
    """Return what the shard's commit names; None where it is missing or invalid."""
    try:
        commit = read_record(Commit, store, commit_key(number))
    except (FileNotFoundError, KdscaleError):
        return None
    return commit.as_shard() if commit.shard == number else None


def _is_intact(checker: ShardChecker, shard: Shard) -> bool:
    return not checker.check(shard).bad


# What all shards share


def _restore_shared(
    store: Store, shared: Sequence[Damage], put_if_absent: PutIfAbsent | None
) -> list[str]:
    """Write plans, priors and the manifest again where possible; return the keys restored."""
    damaged = {damage.key for damage in shared}
    manifests = [key for key in damaged if key.startswith("manifests/")]
    if manifests:
        for key in manifests:
            _restore_manifest(store, key, put_if_absent)
        return manifests
    manifest = load_manifest(store)
    restored = []
    for number, generation in enumerate(manifest.generations):
        if plan_key(number) in damaged:
            store.put(plan_key(number), record_bytes(_plan_again(manifest, generation)))
            restored.append(plan_key(number))
    by_prior = {generation.prior_key: generation for generation in manifest.generations}
    for key in damaged & by_prior.keys():
        if _restore_prior(store, manifest, by_prior[key]):
            restored.append(key)
    return restored


def _restore_manifest(store: Store, key: str, put_if_absent: PutIfAbsent | None) -> None:
    """Publish again from plans and commits; the same content gives the same record and table.

    What nobody can open is taken away first, and so are those before it that nobody can open. Where
    shards of the first generation are missing nothing takes their place: the cache is then one
    whose capture is not finished.
    """
    complete = [*takewhile(partial(_is_committed, store), load_plans(store))]
    store.delete(key)
    for version in sorted(manifest_versions(store), reverse=True):
        try:
            load_manifest(store, version)
            break
        except KdscaleError:
            store.delete(manifest_key(version))
    # One by one: a student may have been promised the rows of the first generations only.
    for plan in complete:
        publish(store, plan.generation, put_if_absent)


def _is_committed(store: Store, plan: PlanRecord) -> bool:
    return len(committed_shards(store, plan.generation)) == len(plan.generation.shards)


def _plan_again(manifest: Manifest, generation: Generation) -> PlanRecord:
    """Return the plan of a published generation; its time is that of the manifest."""
    record = manifest.record
    return PlanRecord(
        format=record.format,
        identity=record.identity,
        generation=generation,
        created=record.created,
    )


def _restore_prior(store: Store, manifest: Manifest, generation: Generation) -> bool:
    """Count a generation's prior again from its rows' tokens, which are stored without its help."""
    assert generation.prior is not None
    assert generation.prior_key is not None
    numbers = range(generation.first_shard, generation.first_shard + len(generation.shards))
    shards = (manifest.shards[number] for number in numbers)
    every = counted_rows(generation.rows, int(manifest.identity["seq_len"])).step
    counted = partial(_counted_tokens, store, generation, every)
    try:
        texts = ordered_map(counted, shards, threads=_THREADS, ahead=_THREADS)
        data = encode_prior(count_prior(texts, int(manifest.identity["vocab_size"])))
    except KdscaleError:
        return False  # Shards are damaged as well.
    if object_digest(data) != generation.prior.digest:
        return False
    store.put(generation.prior_key, data)
    return True


def _counted_tokens(
    store: Store, generation: Generation, every: int, shard: Shard
) -> tuple[np.ndarray, np.ndarray]:
    """Return token ids and loss mask [R, T] of every `every`-th row, of those in a shard.

    The rows are counted over the generation. KdscaleError where the shard's object is damaged.
    """
    with pa.ipc.open_file(pa.py_buffer(read_object(store, shard.object, shard.digest))) as file:
        rows = file.read_all()
    ids, mask = (from_lists(rows[name].combine_chunks()) for name in ("input_ids", "loss_mask"))
    counted = slice(
        -generation.shards[shard.shard - generation.first_shard].start % every, None, every
    )
    return ids[counted], mask[counted].astype(np.bool_)
