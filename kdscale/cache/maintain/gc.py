"""Delete what no manifest, commit or plan names: what killed attempts and repairs left behind.

Storage gives no way to delete an object only if nobody names it meanwhile, so time decides: an
object that an attempt at work has written is young, and its commit follows within the grace time.
Everything is listed before the names are read, so what is written in between is never seen as
unnamed. Only the folders that hold named objects are looked at; records stay.
"""

import re
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial

from kdscale.cache.commit.manifest import load_manifest
from kdscale.cache.commit.plan import load_plans
from kdscale.cache.format.records import Commit, ManifestRecord, commit_key, read_record
from kdscale.cache.maintain.inspect import priors
from kdscale.cache.prefetch import ordered_map
from kdscale.errors import KdscaleError
from kdscale.store import Entry, Store

DAY = 24 * 3600.0

_NAMED_FOLDERS = ("data/", "index/", "prior/", "manifests/shards-")
_SHARD_FOLDERS = ("data", "index")
_MANIFEST = re.compile(r"manifests/(\d+)\.json")
_THREADS = 16


@dataclass(frozen=True)
class GcReport:
    """Result of `gc`: the objects deleted, or to be deleted."""

    entries: list[Entry]
    """Objects, records of manifests, and temporary files."""

    versions: list[int]
    """The manifests among them."""

    dry_run: bool

    @property
    def bytes(self) -> int:
        """Bytes of all entries."""
        return sum(entry.size for entry in self.entries)


def gc(
    store: Store,
    grace_seconds: float = DAY,
    dry_run: bool = False,
    *,
    keep: int | None = None,
    now: Callable[[], float] = time.time,
) -> GcReport:
    """Delete unnamed objects, and killed writers' temporary files, older than `grace_seconds`.

    dry_run: delete nothing. keep: leave so many manifests, the latest ones; by default all. The
    latest manifest of each number of generations stays in any case, because students are pinned
    to that number; and one that a newer one replaced within the grace time, because a reader
    may be using it. May run beside captures and readers, and again after it was killed.
    KdscaleError, before anything is deleted, where there is no cache or where a plan or
    manifest cannot be read.
    """
    if keep is not None and keep < 1:
        raise KdscaleError(f"keep is {keep}.", "Keep at least 1 manifest: without one is no cache.")
    before = now() - grace_seconds
    entries = store.entries()
    leftovers = [entry for entry in store.leftovers() if entry.modified < before]
    manifests = _manifests(entries)
    dropped = _dropped(store, manifests, keep, before)
    named = _named(store, manifests.keys() - set(dropped))
    old = (entry for entry in entries if entry.modified < before)
    unnamed = [e for e in old if e.key.startswith(_NAMED_FOLDERS) and e.key not in named]
    # Manifests go first: an object that is gone must not be named, should this be killed.
    garbage = [manifests[version] for version in dropped] + leftovers
    if not dry_run:
        for entry in garbage:
            store.delete(entry.key)
    collect = partial(_collect, store, dry_run)
    collected = ordered_map(collect, unnamed, threads=_THREADS, ahead=4 * _THREADS)
    deleted = [entry for entry, is_gone in zip(unnamed, collected, strict=True) if is_gone]
    return GcReport(garbage + deleted, dropped, dry_run)


def _manifests(entries: Iterable[Entry]) -> dict[int, Entry]:
    """Return the records of manifests by version."""
    matches = ((_MANIFEST.fullmatch(entry.key), entry) for entry in entries)
    return {int(match[1]): entry for match, entry in matches if match}


def _dropped(
    store: Store, manifests: dict[int, Entry], keep: int | None, before: float
) -> list[int]:
    """Versions that may go, ascending; see `gc`."""
    versions = sorted(manifests)
    if keep is None or len(versions) <= keep:
        return []
    generations = {
        v: len(read_record(ManifestRecord, store, manifests[v].key).generations) for v in versions
    }
    dropped = []
    for version in versions[:-keep]:
        replacing = [v for v in versions if v > version and generations[v] == generations[version]]
        if replacing and manifests[replacing[0]].modified < before:
            dropped.append(version)
    return dropped


def _named(store: Store, versions: Iterable[int]) -> set[str]:
    """Keys that plans and manifests name."""
    plans = load_plans(store)
    if not plans:
        raise KdscaleError(f"{store} holds no cache.", "Give the folder of a cache.")
    named = set(priors(tuple(plan.generation for plan in plans)))
    for version in versions:
        manifest = load_manifest(store, version)
        named |= {manifest.record.shards_key, *priors(manifest.generations)}
        for shard in manifest.shards:
            named |= {shard.object, shard.index}
    return named


def _collect(store: Store, dry_run: bool, entry: Entry) -> bool:
    """Delete an object unless the commit of its shard, read at the last moment, names it.

    False where it stays.
    """
    folder, _, name = entry.key.partition("/")
    number = name.partition("-")[0]
    if folder in _SHARD_FOLDERS and number.isdigit():
        try:
            commit = read_record(Commit, store, commit_key(int(number)))
            if entry.key in (commit.object, commit.index):
                return False
        except FileNotFoundError:
            pass
        except KdscaleError:
            return False  # What it named is not known.
    if not dry_run:
        store.delete(entry.key)
    return True
