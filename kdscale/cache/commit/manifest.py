"""Manifests: the one place that says what a cache holds.

A manifest is written when every unit of a segment is committed, under the next free version.
Readers pin one version and never list data, so nothing that happens in the store later changes what
they read. Its record is small; the units are a table of their own (units.py).
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

from kdscale.cache.commit.plan import load_plans
from kdscale.cache.commit.shards import UnitTable, decode_table, encode_table, make_table
from kdscale.cache.commit.writer import committed_units
from kdscale.cache.format.checked_read import read_object
from kdscale.cache.format.records import (
    Commit,
    ManifestRecord,
    ObjectReference,
    PlanRecord,
    Segment,
    Unit,
    commit_key,
    read_record,
    record_bytes,
)
from kdscale.cache.format.shard_file import object_digest
from kdscale.cache.prefetch import in_order
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
    units: UnitTable

    @property
    def version(self) -> int:
        """1 for the first capture, one more for each change after it."""
        return self.record.version

    @property
    def identity(self) -> Identity:
        """What the cache is a cache of."""
        return self.record.identity

    @property
    def segments(self) -> tuple[Segment, ...]:
        """In the order of their rows."""
        return self.record.segments

    @property
    def rows(self) -> int:
        """Rows in all units."""
        last = self.segments[-1]
        return last.first_row + last.rows


def publish(store: Store, segment: Segment, put_if_absent: PutIfAbsent | None = None) -> Manifest:
    """The manifest over all units up to those of `segment`, written unless the latest one says the
    same already.

    Safe to call twice and from several processes. KdscaleError where units are missing.
    """
    plans = load_plans(store)
    last = next(n for n, plan in enumerate(plans) if plan.segment == segment)
    while True:
        versions = manifest_versions(store)
        latest = load_manifest(store, max(versions)) if versions else None
        # What a later segment added stays in.
        plans_in = plans[: max(last + 1, len(latest.segments) if latest else 0)]
        units = _committed(store, plans_in)
        if latest and len(latest.segments) == len(plans_in) and latest.units == units:
            return latest
        data = encode_table(units)
        record = ManifestRecord(
            format=FORMAT,
            version=max(versions, default=0) + 1,
            identity=plans[0].identity,
            fingerprint=fingerprint(plans[0].identity),
            created=plans_in[-1].created,
            segments=tuple(plan.segment for plan in plans_in),
            units=ObjectReference(digest=object_digest(data), length=len(data)),
        )
        store.put(record.units_key, data)
        put = put_if_absent or store.put_if_absent
        if put(manifest_key(record.version), record_bytes(record)):
            return Manifest(record, units)


def load_manifest(
    store: Store, version: int | None = None, segments: int | None = None
) -> Manifest:
    """A version of the manifest, the latest by default; of those with so many `segments`, the
    latest, whose rows are always the same. KdscaleError where there is none."""
    versions = manifest_versions(store)
    if not versions:
        raise _incomplete(store)
    wanted = sorted(versions, reverse=True) if version is None else [version]
    for number in wanted:
        if number in versions:
            record = _read_record(store, number)
            if segments is None or len(record.segments) == segments:
                data = read_object(store, record.units_key, record.units.digest)
                return Manifest(record, decode_table(data))
    what = f"manifest {version}" if version else f"manifest of {segments} segments"
    raise KdscaleError(
        f"The cache {store} has no {what}; it has {sorted(versions)}.",
        "Read the latest, or run the cache stage again.",
    )


def manifest_key(version: int) -> str:
    """Where a version lies, relative to the cache."""
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
    segment = plans[0].segment
    done = len(committed_units(store, segment))
    return KdscaleError(
        f"The cache {store} is not complete: {done} of {len(segment.units)} units are committed.",
        "Run the cache stage again; it continues where it stopped.",
    )


def _committed(store: Store, plans: list[PlanRecord]) -> UnitTable:
    """The commits of all units; KdscaleError where one is missing or of another size."""
    for segment in (plan.segment for plan in plans):
        missing = set(range(len(segment.units))) - committed_units(store, segment)
        if missing:
            raise KdscaleError(
                f"{len(missing)} of {len(segment.units)} units of {store} are not captured, "
                f"the first is unit {segment.first_unit + min(missing)}.",
                "Run the cache stage again; it continues where it stopped.",
            )
    sizes = [len(rows) for plan in plans for rows in plan.segment.units]
    return make_table(_commits(store, sizes), len(sizes))


def _commits(store: Store, sizes: list[int]) -> Iterator[Unit]:
    """All commits in order, a bounded number of them in memory at a time."""
    numbers = enumerate(sizes)
    return in_order(partial(_read_commit, store), numbers, threads=_THREADS, ahead=2 * _THREADS)


def _read_commit(store: Store, expected: tuple[int, int]) -> Unit:
    """The commit of a unit; `expected` is its number and its rows."""
    unit, rows = expected
    key = commit_key(unit)
    commit = read_record(Commit, store, key)
    if (commit.unit, commit.rows) != (unit, rows):
        raise KdscaleError(
            f"{store}/{key} is of unit {commit.unit} with {commit.rows} rows; "
            f"the plan has {rows} rows there.",
            f"Delete {key} and run the cache stage again.",
        )
    return commit.as_unit()
