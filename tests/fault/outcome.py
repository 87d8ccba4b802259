"""The content that the fault tests capture, and checks of it after a fault."""

import json
import time
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from kdscale.cache.maintain.gc import gc
from kdscale.cache.maintain.verify import verify
from kdscale.cache.read.reader import CacheReader
from kdscale.cache.rows import CachedRows
from kdscale.store import Store
from tests.unit.cache.planted import Planted, assert_same_rows, make_planted

ROWS = 13
SHARDS = 2
# Per shard: two objects and a commit. Then prior, plan, table of shards, manifest.
WRITES = 3 * SHARDS + 4

# The objects that decide between committers are no part of the cache.
_BESIDE = {"committer.json", "store-probe.json"}


def planted_in(store: Store) -> Planted:
    """Return the content that all captures here capture, not stored yet."""
    return make_planted(store, rows=ROWS)


def rounded(planted: Planted, change: int) -> Planted:
    """Return the content with other head values, as another GPU's rounding makes it.

    A change of 0 changes nothing.
    """
    payload = planted.payload.copy()
    payload[..., 0] ^= np.uint8(change) * (payload[..., 0] > 0)
    return replace(planted, payload=payload)


def rows_of(cached: CachedRows, rows: np.ndarray) -> CachedRows:
    """Return the rows at `rows`."""
    return CachedRows(
        cached.rows.take(rows), cached.payload[rows], cached.entropy[rows], cached.nll[rows]
    )


def decoded(store: Store) -> CachedRows:
    """Return all rows of a cache, in order."""
    reader = CacheReader(store)
    return reader.read(np.arange(len(reader)))


def committed_by(first: Planted, rest: CachedRows, shards: int) -> CachedRows:
    """Return the decoded cache whose first `shards` shards are those of `first`."""
    rows = min(shards * first.sequences_per_shard, ROWS)
    return replace(rest, payload=np.concatenate([first.payload[:rows], rest.payload[rows:]]))


def assert_same(found: CachedRows, expected: CachedRows) -> None:
    """Assert equality, value by value."""
    assert_same_rows(found.rows, expected.rows)
    for name in ("payload", "entropy", "nll"):
        left, right = getattr(found, name), getattr(expected, name)
        assert left.dtype == right.dtype, name
        assert np.array_equal(left, right), name


def assert_committed_once(store: Store) -> None:
    """Assert that every shard has one commit, one manifest was published, and all is sound."""
    assert store.list("commits/") == [f"commits/{shard:06d}.json" for shard in range(SHARDS)]
    assert store.list("plans/") == ["plans/0000.json"]
    manifests = [key for key in store.list("manifests/") if key.endswith(".json")]
    assert manifests == ["manifests/00000001.json"]
    report = verify(store)
    assert report.bad == []
    assert report.shards == SHARDS


def named_objects(store: Store) -> list[str]:
    """Return the keys of a cache, worked out from its records alone."""
    plan = json.loads(store.get("plans/0000.json"))
    manifest = json.loads(store.get("manifests/00000001.json"))
    keys = [
        "plans/0000.json",
        "manifests/00000001.json",
        f"manifests/shards-{manifest['shards']['digest'][:16]}.arrow",
        f"prior/{plan['generation']['prior']['digest'][:16]}.arrow",
    ]
    for shard in range(SHARDS):
        commit = json.loads(store.get(f"commits/{shard:06d}.json"))
        keys += [
            f"commits/{shard:06d}.json",
            f"data/{shard:06d}-{commit['digest'][:16]}.arrow",
            f"index/{shard:06d}-{commit['index_digest'][:16]}.arrow",
        ]
    return sorted(keys)


def assert_only_named(store: Store) -> None:
    """Assert that the store holds the cache and nothing else."""
    assert [key for key in store.list() if key not in _BESIDE] == named_objects(store)
    assert store.leftovers() == []


def assert_undisturbed(store: Store, expected: CachedRows, fault: str) -> None:
    """Assert that after `fault` all is committed once and sound.

    gc leaves only the named objects, and the decoded cache is the expected one.
    """
    try:
        assert_committed_once(store)
        gc(store, grace_seconds=0, now=lambda: time.time() + 60)
        assert_only_named(store)
        assert_same(decoded(store), expected)
    except Exception as error:
        raise AssertionError(f"{fault}: {error}") from error


def assert_each_of_one(
    store: Store, attempts: Sequence[Planted], expected: CachedRows, fault: str
) -> None:
    """Assert that after `fault` each shard is wholly of one of the `attempts`, which differ.

    Nothing but the cache is in the store; else as `assert_undisturbed`.
    """
    assert_only_named(store)
    found, payload = decoded(store).payload, expected.payload.copy()
    for shard in attempts[0].generation.shards:
        same = [np.array_equal(found[shard], attempt.payload[shard]) for attempt in attempts]
        assert sum(same) == 1, f"{fault}: {shard} is of {same}"
        payload[shard] = attempts[same.index(True)].payload[shard]
    assert_undisturbed(store, replace(expected, payload=payload), fault)
