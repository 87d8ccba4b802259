"""Manifests: the one place that says what a cache holds.

A manifest is written when every shard of a generation is committed, under the next free version.
Readers pin one version and never list data, so nothing that happens in the store later changes what
they read. Its record is small; the shards are a table of their own (shards.py).
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

from kdscale.cache.commit.plan import load_plans
from kdscale.cache.commit.shards import ShardTable, decode_table, encode_table, make_table
from kdscale.cache.commit.writer import committed_shards
from kdscale.cache.format.checked_read import read_object
from kdscale.cache.format.records import (
    Commit,
    Generation,
    ManifestRecord,
    ObjectReference,
    PlanRecord,
    Shard,
    commit_key,
    read_record,
    record_bytes,
)
from kdscale.cache.format.shard_file import object_digest
from kdscale.cache.prefetch import ordered_map
from kdscale.cache.spec import FORMAT, Identity
from kdscale.config import fingerprint
from kdscale.errors import KdscaleError
from kdscale.store import PutIfAbsent, Store

_FOLDER = "manifests/"
_THREADS = 32


@dataclass(frozen=True)
class Manifest:
    """One version of a published cache."""

    record: ManifestRecord
    shards: ShardTable

    @property
    def version(self) -> int:
        """1 for the first capture, one more for each change after it."""
        return self.record.version

    @property
    def identity(self) -> Identity:
        """Return the cache's spec."""
        return self.record.identity

    @property
    def generations(self) -> tuple[Generation, ...]:
        """Generations in the order of their rows."""
        return self.record.generations

    @property
    def rows(self) -> int:
        """Rows in all shards."""
        last = self.generations[-1]
        return last.first_row + last.rows


def publish(
    store: Store, generation: Generation, put_if_absent: PutIfAbsent | None = None
) -> Manifest:
    """Publish the shards up to those of `generation`, unless the latest manifest has them.

    Safe to call twice and from several processes. KdscaleError where shards are missing.
    """
    plans = load_plans(store)
    last = next(n for n, plan in enumerate(plans) if plan.generation == generation)
    while True:
        versions = manifest_versions(store)
        latest = load_manifest(store, max(versions)) if versions else None
        # What a later generation added stays in.
        plans_in = plans[: max(last + 1, len(latest.generations) if latest else 0)]
        shards = _committed(store, plans_in)
        if latest and len(latest.generations) == len(plans_in) and latest.shards == shards:
            return latest
        data = encode_table(shards)
        record = ManifestRecord(
            format=FORMAT,
            version=max(versions, default=0) + 1,
            identity=plans[0].identity,
            fingerprint=fingerprint(plans[0].identity),
            created=plans_in[-1].created,
            generations=tuple(plan.generation for plan in plans_in),
            shards=ObjectReference(digest=object_digest(data), length=len(data)),
        )
        store.put(record.shards_key, data)
        put = put_if_absent or store.put_if_absent
        if put(manifest_key(record.version), record_bytes(record)):
            return Manifest(record, shards)


def load_manifest(
    store: Store, version: int | None = None, generations: int | None = None
) -> Manifest:
    """Return a version of the manifest, by default the latest; KdscaleError where there is none.

    With `generations`, the latest of those with so many: their rows are always the same.
    """
    versions = manifest_versions(store)
    if not versions:
        raise _incomplete(store)
    wanted = sorted(versions, reverse=True) if version is None else [version]
    for number in wanted:
        if number in versions:
            record = _read_record(store, number)
            if generations is None or len(record.generations) == generations:
                data = read_object(store, record.shards_key, record.shards.digest)
                return Manifest(record, decode_table(data))
    what = f"manifest {version}" if version else f"manifest of {generations} generations"
    raise KdscaleError(
        f"The cache {store} has no {what}; it has {sorted(versions)}.",
        "Read the latest, or run the cache stage again.",
    )


def manifest_key(version: int) -> str:
    """Return where a version lies, relative to the cache."""
    return f"{_FOLDER}{version:08d}.json"


def manifest_versions(store: Store) -> set[int]:
    """Versions published so far."""
    names = (key.removeprefix(_FOLDER).removesuffix(".json") for key in store.list(_FOLDER))
    return {int(name) for name in names if name.isdigit()}


def _read_record(store: Store, version: int) -> ManifestRecord:
    key = manifest_key(version)
    record = read_record(ManifestRecord, store, key)
    if record.version != version:
        raise KdscaleError(
            f"{store}/{key} is the record of version {record.version}.",
            f"`kdscale cache repair {store}` writes it again.",
        )
    return record


def _incomplete(store: Store) -> KdscaleError:
    plans = load_plans(store)
    if not plans:
        return KdscaleError(
            f"{store} holds no cache.",
            "Give the folder of a cache, or make one with `kdscale run CONFIG --only cache`.",
        )
    generation = plans[0].generation
    done = len(committed_shards(store, generation))
    return KdscaleError(
        f"The cache {store} is not complete: {done} of {len(generation.shards)} shards are "
        "committed.",
        "Run the cache stage again; it continues where it stopped.",
    )


def _committed(store: Store, plans: list[PlanRecord]) -> ShardTable:
    """Return the commits of all shards; KdscaleError where one is missing or of another size."""
    for generation in (plan.generation for plan in plans):
        missing = set(range(len(generation.shards))) - committed_shards(store, generation)
        if missing:
            raise KdscaleError(
                f"{len(missing)} of {len(generation.shards)} shards of {store} are not captured, "
                f"the first is shard {generation.first_shard + min(missing)}.",
                "Run the cache stage again; it continues where it stopped.",
            )
    sizes = [len(rows) for plan in plans for rows in plan.generation.shards]
    return make_table(_commits(store, sizes), len(sizes))


def _commits(store: Store, sizes: list[int]) -> Iterator[Shard]:
    """All commits in order, a bounded number of them in memory at a time."""
    numbers = enumerate(sizes)
    return ordered_map(partial(_read_commit, store), numbers, threads=_THREADS, ahead=2 * _THREADS)


def _read_commit(store: Store, expected: tuple[int, int]) -> Shard:
    """Return the commit of a shard; `expected` is its number and its rows."""
    shard, rows = expected
    key = commit_key(shard)
    commit = read_record(Commit, store, key)
    if (commit.shard, commit.rows) != (shard, rows):
        raise KdscaleError(
            f"{store}/{key} is of shard {commit.shard} with {commit.rows} rows; "
            f"the plan has {rows} rows there.",
            f"Delete {key} and run the cache stage again.",
        )
    return commit.as_shard()
