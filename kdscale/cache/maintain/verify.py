"""Is a cache sound? Every stored byte against its digest, and every record against the others.

Shards are independent, so they are checked side by side; for a quick answer take a
sample. Damage is reported, never raised.
"""

from bisect import bisect_right
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from kdscale.cache.codecs import open_codec
from kdscale.cache.commit.manifest import Manifest, load_manifest, manifest_key, manifest_versions
from kdscale.cache.commit.plan import open_layout, plan_key
from kdscale.cache.format.records import (
    Commit,
    OtherFormatError,
    PlanRecord,
    Shard,
    commit_key,
    read_record,
)
from kdscale.cache.format.shard_file import Layout
from kdscale.cache.maintain.checks import Damage, Tally, check_shard, fetch
from kdscale.cache.maintain.inspect import priors
from kdscale.cache.prefetch import ordered_map
from kdscale.errors import KdscaleError
from kdscale.store import Store


@dataclass(frozen=True)
class VerifyReport:
    """Result of `verify`: what was read, and the damage in it."""

    version: int
    shards: int
    """Shards that were checked, of `shards_of_cache`."""

    shards_of_cache: int
    objects: int
    chunks: int
    bytes: int
    bad: list[Damage]


def verify(
    store: Store,
    *,
    workers: int = 8,
    sample: float | None = None,
    seed: int = 0,
    version: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> VerifyReport:
    """Hold a manifest's objects and records against each other, and decode every chunk.

    sample: share of the shards, chosen by `seed`; all of them when not given. Memory is that of
    `workers` shards. progress: called with (shards done, shards in all). KdscaleError where there
    is no such manifest or share.
    """
    if sample is not None and not 0 < sample <= 1:
        raise KdscaleError(f"The sample {sample} is no share of a cache.", "Give 0 < sample <= 1.")
    tally = Tally()
    version, newest = _versions(store, version)
    manifest = _open_manifest(store, version, tally)
    if manifest is None:
        return VerifyReport(version, 0, 0, tally.objects, 0, tally.bytes, tally.bad)
    tally.bad += _plan_damage(store, manifest)
    for key, prior in priors(manifest.generations).items():
        fetch(store, None, key, prior.digest, tally)
    check = ShardChecker(store, manifest, with_commit=version == newest)
    chosen = _chosen(len(manifest.shards), sample, seed)
    checked = ordered_map(check, chosen.tolist(), threads=workers, ahead=2 * workers)
    for done, found in enumerate(checked, start=1):
        tally.add(found)
        if progress:
            progress(done, len(chosen))
    return VerifyReport(
        version=version,
        shards=len(chosen),
        shards_of_cache=len(manifest.shards),
        objects=tally.objects,
        chunks=tally.chunks,
        bytes=tally.bytes,
        bad=tally.bad,
    )


class ShardChecker:
    """Checks shards of one manifest by number. Safe in many threads."""

    def __init__(self, store: Store, manifest: Manifest, *, with_commit: bool) -> None:
        """`with_commit` also compares the shard's commit with the manifest."""
        self._store = store
        self._manifest = manifest
        self._codec = open_codec(manifest.identity["codec"])
        self._first_shards = [generation.first_shard for generation in manifest.generations]
        self._with_commit = with_commit
        # Shards come in order: of many generations' priors only the latest are needed.
        self._layout = lru_cache(maxsize=2)(self._open_layout)

    def __call__(self, number: int) -> Tally:
        """Check the shard as the manifest names it."""
        tally = self.check(self._manifest.shards[number])
        if self._with_commit:
            tally.bad += self._commit_damage(number)
        return tally

    def check(self, shard: Shard) -> Tally:
        """Check the objects of a shard, from a manifest or a commit."""
        number = bisect_right(self._first_shards, shard.shard) - 1
        generation = self._manifest.generations[number]
        rows = len(generation.shards[shard.shard - generation.first_shard])
        return check_shard(self._store, shard, rows, self._codec, self._layout(number))

    def _open_layout(self, number: int) -> Layout | None:
        """None where the generation's prior is damaged, which is reported for the prior."""
        generation = self._manifest.generations[number]
        try:
            return open_layout(self._store, self._manifest.identity, generation)
        except KdscaleError:
            return None

    def _commit_damage(self, number: int) -> Iterator[Damage]:
        """Report a stored commit that differs from the manifest's."""
        key = commit_key(number)
        try:
            commit = read_record(Commit, self._store, key)
            if commit.as_shard() != self._manifest.shards[number]:
                yield Damage(number, key, "is of another attempt than the manifest's")
        except FileNotFoundError:
            yield Damage(number, key, "is missing")
        except KdscaleError as error:
            yield Damage(number, key, f"cannot be read: {error.problem}")


def _versions(store: Store, version: int | None) -> tuple[int, int]:
    """Return the version to check, and the newest; KdscaleError where there is none."""
    versions = manifest_versions(store)
    if not versions or version not in {None, *versions}:
        load_manifest(store, version)
    return version or max(versions), max(versions)


def _open_manifest(store: Store, version: int, tally: Tally) -> Manifest | None:
    """Return the manifest; None where it, or its table of shards, is damaged."""
    key = manifest_key(version)
    try:
        manifest = load_manifest(store, version)
    except OtherFormatError:
        raise  # Repairing it would do harm.
    except KdscaleError as error:
        tally.bad.append(Damage(None, key, f"cannot be read: {error.problem}"))
        return None
    tally.objects += 1
    tally.bytes += manifest.record.shards.length
    sizes = [len(rows) for generation in manifest.generations for rows in generation.shards]
    if manifest.shards.rows.tolist() != sizes:
        tally.bad.append(Damage(None, key, "names other shards than its generations have"))
        return None
    return manifest


def _plan_damage(store: Store, manifest: Manifest) -> Iterator[Damage]:
    """Yield the generations whose plan differs from the manifest's.

    An append would go wrong on it.
    """
    for number, generation in enumerate(manifest.generations):
        key = plan_key(number)
        try:
            plan = read_record(PlanRecord, store, key)
            if (plan.generation, plan.identity) != (generation, manifest.identity):
                yield Damage(None, key, "plans something else than the manifest has")
        except FileNotFoundError:
            yield Damage(None, key, "is missing")
        except KdscaleError as error:
            yield Damage(None, key, f"cannot be read: {error.problem}")


def _chosen(shards: int, sample: float | None, seed: int) -> np.ndarray:
    """Ascending numbers of the shards to check; at least one."""
    if sample is None:
        return np.arange(shards)
    count = max(1, round(sample * shards))
    return np.sort(np.random.default_rng(seed).choice(shards, count, replace=False))
