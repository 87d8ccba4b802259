"""Manifests: the one place that says what a cache holds.

A manifest is written once, when every unit is committed, under the next free version. Readers pin
one version and never list data, so nothing that happens in the store later changes what they read.
"""

from concurrent.futures import ThreadPoolExecutor

from kdscale.cache.identity import FORMAT, Identity, check_identity
from kdscale.cache.plan import Plan, load_plan
from kdscale.cache.records import Commit, Manifest, commit_key, read_record, record_bytes
from kdscale.cache.writer import committed_units
from kdscale.config import fingerprint
from kdscale.errors import KdscaleError
from kdscale.store import Store

_FOLDER = "manifests/"
_THREADS = 16


def publish(store: Store, identity: Identity, plan: Plan) -> Manifest:
    """The manifest over all units of `plan`, written unless the latest one says the same already.

    Safe to call twice and from several processes. KdscaleError where units are missing or the cache
    was planned for another identity.
    """
    planned = load_plan(store)
    check_identity(
        planned.identity | {"rows": planned.rows, "rows_per_unit": planned.rows_per_unit},
        identity | {"rows": plan.rows, "rows_per_unit": plan.rows_per_unit},
    )
    units = _commits(store, plan)
    while True:
        latest = max(manifest_versions(store), default=0)
        if latest and load_manifest(store, latest).units == units:
            return load_manifest(store, latest)
        manifest = Manifest(
            format=FORMAT,
            version=latest + 1,
            identity=identity,
            fingerprint=fingerprint(identity),
            rows_per_unit=plan.rows_per_unit,
            created=planned.created,
            units=units,
        )
        if store.put_if_absent(manifest_key(manifest.version), record_bytes(manifest)):
            return manifest


def load_manifest(store: Store, version: int | None = None) -> Manifest:
    """A version of the manifest, the latest by default; KdscaleError where there is none."""
    versions = manifest_versions(store)
    if not versions:
        units = Plan(load_plan(store).rows, load_plan(store).rows_per_unit).units
        raise KdscaleError(
            f"The cache {store} is not complete: "
            f"{len(committed_units(store))} of {len(units)} units are committed.",
            "Run the cache stage again; it continues where it stopped.",
        )
    if version is not None and version not in versions:
        raise KdscaleError(
            f"The cache {store} has no manifest {version}; it has {sorted(versions)}.",
            "Leave the version out to read the latest.",
        )
    return read_record(Manifest, store, manifest_key(version or max(versions)))


def manifest_key(version: int) -> str:
    """Where a version lies, relative to the cache."""
    return f"{_FOLDER}{version:08d}.json"


def manifest_versions(store: Store) -> set[int]:
    """Versions published so far."""
    names = (key.removeprefix(_FOLDER).removesuffix(".json") for key in store.list(_FOLDER))
    return {int(name) for name in names if name.isdigit()}


def _commits(store: Store, plan: Plan) -> tuple[Commit, ...]:
    """The commits of all units in order; KdscaleError where one is missing or of another size."""
    units = plan.units
    done = committed_units(store)
    if missing := [unit for unit in range(len(units)) if unit not in done]:
        raise KdscaleError(
            f"{len(missing)} of {len(units)} units of {store} are not captured, "
            f"the first is unit {missing[0]}.",
            "Run the cache stage again; it continues where it stopped.",
        )
    with ThreadPoolExecutor(_THREADS) as pool:
        keys = map(commit_key, range(len(units)))
        commits = tuple(pool.map(lambda key: read_record(Commit, store, key), keys))
    for unit, (commit, positions) in enumerate(zip(commits, units, strict=True)):
        if (commit.unit, commit.rows) != (unit, len(positions)):
            raise KdscaleError(
                f"{store}/{commit_key(unit)} is of unit {commit.unit} with {commit.rows} rows; "
                f"the plan has {len(positions)} rows there.",
                f"Delete {commit_key(unit)} and run the cache stage again.",
            )
    return commits
