"""Objects that are truncated, bit-flipped, swapped or gone.

Each is named, and repaired or captured again, and whatever does not need it stays readable.
"""

from dataclasses import fields, replace
from itertools import product

import numpy as np
import pytest

from kdscale.cache.commit.manifest import load_manifest, manifest_key
from kdscale.cache.commit.plan import load_plans, plan_key
from kdscale.cache.format.records import Commit, commit_key, read_record
from kdscale.cache.maintain.repair import repair
from kdscale.cache.maintain.verify import verify
from kdscale.cache.read.reader import CacheReader
from kdscale.cache.rows import CachedRows, RowStats
from kdscale.errors import KdscaleError
from kdscale.store import Store, open_store
from tests.fault.captures import capture
from tests.fault.outcome import ROWS, assert_same, decoded, planted_in, rows_of
from tests.fault.processes import side_by_side
from tests.unit.cache.planted import Planted, make_planted, stored_payload

pytestmark = [pytest.mark.fault, pytest.mark.timeout(300)]

MORE = 10
KINDS = ("data", "index", "prior", "commit", "plan", "table", "manifest")
DAMAGES = ("truncated", "flipped", "swapped", "missing")
# The one before it is the latest then, and what no manifest names does not exist.
NO_DAMAGE = ("manifest", "missing")


def appended(store: Store) -> Planted:
    """More rows, for a second generation."""
    whole = make_planted(store, rows=ROWS + MORE)
    at = np.arange(ROWS, ROWS + MORE)
    stats = RowStats(*(getattr(whole.stats, field.name)[at] for field in fields(RowStats)))
    rows = whole.rows.take(at)
    payload = stored_payload(whole.codec, rows, whole.payload[at])
    return replace(whole, rows=rows, stats=stats, payload=payload)


def capture_both(store: Store) -> None:
    """Both generations, as the cache stage captures what is missing of them."""
    for planted in (planted_in(store), appended(store)):
        capture(None, planted)


@pytest.fixture(scope="module")
def intact(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """Return a cache of two generations and two manifests."""
    store = open_store(str(tmp_path_factory.mktemp("intact")))
    capture_both(store)
    return store


@pytest.fixture(scope="module")
def expected(intact: Store) -> CachedRows:
    return decoded(intact)


def copy(source: Store, target: Store) -> None:
    for key in source.list():
        target.put(key, source.get(key))


def twins(kind: str, store: Store) -> tuple[str, str]:
    """Return the object that is damaged, and another of its kind."""
    old, new = load_manifest(store, 1), load_manifest(store, 2)
    first, second = new.generations
    assert first.prior_key is not None
    assert second.prior_key is not None
    return {
        "data": (new.shards[0].object, new.shards[1].object),
        "index": (new.shards[0].index, new.shards[1].index),
        "prior": (first.prior_key, second.prior_key),
        "commit": (commit_key(0), commit_key(1)),
        "plan": (plan_key(0), plan_key(1)),
        "table": (new.record.shards_key, old.record.shards_key),
        "manifest": (manifest_key(2), manifest_key(1)),
    }[kind]


def do_damage(store: Store, damage: str, key: str, other: str) -> None:
    data = bytearray(store.get(key))
    if damage == "truncated":
        store.put(key, bytes(data[: len(data) // 2]))
    elif damage == "flipped":
        data[len(data) // 2] ^= 1
        store.put(key, bytes(data))
    elif damage == "swapped":
        store.put(key, store.get(other))
        store.put(other, bytes(data))
    else:
        store.delete(key)


def needed_by(kind: str, damage: str) -> set[int]:
    """Rows that cannot be read without the damaged objects."""
    if damage == "swapped" and kind in ("data", "index"):
        return set(range(ROWS))
    if damage == "swapped" and kind == "prior":
        return set(range(ROWS + MORE))
    return {
        "data": set(range(8)),
        "index": set(range(8)),
        "prior": set(range(ROWS)),
        "commit": set(),
        "plan": set(),
        "table": set(range(ROWS + MORE)),
        "manifest": set(range(ROWS + MORE)),
    }[kind]


def readable_rows(store: Store, expected: CachedRows, damaged: list[str]) -> set[int]:
    """Rows that are read, and right; the others are refused with the name of a damaged object."""
    found: set[int] = set()
    problems = []
    for row in range(ROWS + MORE):
        try:
            cached = CacheReader(store).read(np.array([row]))
        except KdscaleError as error:
            problems.append(error.problem)
        else:
            assert_same(cached, rows_of(expected, np.array([row])))
            found.add(row)
    assert all(any(key in problem for key in damaged) for problem in problems)
    return found


def test_damage_is_named_contained_and_healed(
    store: Store, intact: Store, expected: CachedRows
) -> None:
    def check(kind: str, damage: str) -> None:
        cache = store.child(f"{kind}-{damage}")
        copy(intact, cache)
        key, other = twins(kind, cache)
        do_damage(cache, damage, key, other)
        damaged = [key, other] if damage == "swapped" else [key]
        readable = readable_rows(cache, expected, damaged)
        assert readable >= set(range(ROWS + MORE)) - needed_by(kind, damage)
        assert bool(needed_by(kind, damage)) == (len(readable) < ROWS + MORE)
        bad = verify(cache).bad
        assert any(key in str(each) for each in bad), bad
        assert all(any(name in str(each) for name in damaged) for each in bad), bad
        report = repair(cache)
        assert report.lost == []
        capture_both(cache)
        assert verify(cache).bad == []
        assert_same(decoded(cache), expected)

    side_by_side(check, [case for case in product(KINDS, DAMAGES) if case != NO_DAMAGE])


@pytest.mark.parametrize("key", [manifest_key(2), plan_key(1), commit_key(2)])
def test_every_bit_of_a_record_is_guarded(
    local: Store, intact: Store, expected: CachedRows, key: str
) -> None:
    """Its flip leaves valid JSON in places, with another number of rows."""
    copy(intact, local)
    data = local.get(key)
    for at in range(len(data)):
        changed = bytearray(data)
        changed[at] ^= 1 << at % 7
        local.put(key, bytes(changed))
        with pytest.raises(KdscaleError, match=key):
            use(local, key)
    local.put(key, data)
    use(local, key)
    assert_same(decoded(local), expected)


def use(store: Store, key: str) -> None:
    """Return the command that reads the record at `key`."""
    if key.startswith("plans/"):
        load_plans(store)
    elif key.startswith("commits/"):
        read_record(Commit, store, key)
    else:
        load_manifest(store)
