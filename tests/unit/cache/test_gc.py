"""Collection deletes what nothing names, and nothing else, whatever happens at the same time."""

import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest

from kdscale.cache.commit.manifest import load_manifest, manifest_versions, publish
from kdscale.cache.format.records import commit_key
from kdscale.cache.format.shard_file import encode_index, encode_shard
from kdscale.cache.maintain.checks import Damage
from kdscale.cache.maintain.gc import DAY, gc
from kdscale.cache.maintain.repair import repair
from kdscale.cache.maintain.verify import verify
from kdscale.errors import KdscaleError
from kdscale.store import Entry, Store, open_store
from kdscale.store.local import LocalStore, temporary_beside
from tests.s3 import S3Server
from tests.unit.cache.planted import Plant, Planted
from tests.unit.cache.test_commit import appended

STRAYS = (
    "data/000001-0123456789abcdef.arrow",
    "index/000001-0123456789abcdef.arrow",
    "data/000777-0123456789abcdef.arrow",
    "prior/0123456789abcdef.arrow",
    "manifests/shards-0123456789abcdef.arrow",
)
OTHERS = ("store-probe.json", "committer.json", "notes/data/x")


def later(seconds: float) -> Callable[[], float]:
    """Return a clock that is ahead of that of the store."""
    return lambda: time.time() + seconds


def put_strays(store: Store) -> None:
    for number, key in enumerate(STRAYS):
        store.put(key, bytes(10 + number))


def test_what_nothing_names_goes_after_the_grace_time(plant: Plant) -> None:
    planted = plant().publish()
    for key in OTHERS:
        planted.store.put(key, b"{}")
    kept = planted.store.list()
    put_strays(planted.store)
    report = gc(planted.store, now=later(DAY - 60))
    assert (report.entries, report.bytes) == ([], 0)
    report = gc(planted.store, now=later(DAY + 60))
    assert {entry.key for entry in report.entries} == set(STRAYS)
    assert report.bytes == 10 + 11 + 12 + 13 + 14
    assert planted.store.list() == kept
    assert verify(planted.store).bad == []


def test_a_dry_run_says_the_same_and_deletes_nothing(plant: Plant) -> None:
    planted = plant().publish()
    put_strays(planted.store)
    before = planted.store.list()
    would = gc(planted.store, 0, dry_run=True, now=later(60))
    assert planted.store.list() == before
    assert gc(planted.store, 0, now=later(60)).entries == would.entries
    assert planted.store.list() == sorted(set(before) - set(STRAYS))


def test_what_killed_writers_left_goes_too(plant: Plant) -> None:
    planted = plant().publish()
    folder = planted.store.local_path("data")
    with temporary_beside(folder / "x") as temporary:
        temporary.write_bytes(b"half")
        assert gc(planted.store).entries == []
        (left,) = gc(planted.store, now=later(2 * DAY)).entries
        assert (left.key, left.size) == (f"data/{temporary.name}", 4)
        assert not temporary.exists()


def upload(planted: Planted, shard: int) -> tuple[str, str]:
    """Return the objects of a shard whose writer has not come to the commit yet."""
    _, rows, payload, stats = planted.shard(shard)
    encoded = encode_shard(rows, payload, stats, {"attempt": "other"}, 3)
    keys = f"data/{shard:06d}-{encoded.digest[:16]}.arrow", f"index/{shard:06d}-{'0' * 16}.arrow"
    planted.store.put(keys[0], encoded.data)
    planted.store.put(keys[1], encode_index(stats, encoded.chunks))
    return keys


def make_old(planted: Planted) -> None:
    for key in planted.store.list():
        os.utime(planted.store.local_path(key), (0, 0))


def test_a_capture_under_way_loses_nothing(plant: Plant) -> None:
    planted = plant()
    assert planted.writer.commit(*planted.shard(0))
    old = upload(planted, 2)
    make_old(planted)
    named = set(planted.store.list()) - set(old)
    young = upload(planted, 1)
    assert {entry.key for entry in gc(planted.store).entries} == set(old)
    assert set(planted.store.list()) == named | set(young)
    for shard in (1, 2):
        assert planted.writer.commit(*planted.shard(shard))
    publish(planted.store, planted.generation)
    assert verify(planted.store).bad == []


def test_an_append_under_way_loses_nothing(plant: Plant) -> None:
    planted = plant().publish()
    more = appended(planted)
    make_old(planted)
    assert gc(planted.store).entries == []
    publish(planted.store, more.generation)
    assert verify(planted.store).bad == []


@dataclass(frozen=True, repr=False)
class BusyStore(LocalStore):
    """A store in which somebody does something right after a listing."""

    meanwhile: list[Callable[[], object]] = field(default_factory=list, compare=False)

    def entries(self, prefix: str = "") -> list[Entry]:
        found = super().entries(prefix)
        while self.meanwhile:
            self.meanwhile.pop()()
        return found


def test_what_is_committed_after_the_listing_stays(plant: Plant) -> None:
    planted = plant().publish()
    kept = planted.store.list()
    planted.store.delete(commit_key(1))
    planted.store.delete("manifests/00000001.json")
    make_old(planted)

    def commit() -> None:
        assert planted.writer.commit(*planted.shard(1))

    busy = BusyStore(planted.store.url, meanwhile=[commit])
    # The table was the manifest's, and is written again.
    (left,) = gc(busy).entries
    assert left.key.startswith("manifests/shards-")
    publish(planted.store, planted.generation)
    assert planted.store.list() == kept
    assert verify(planted.store).bad == []


def repaired(planted: Planted, shard: int) -> None:
    """Return a new version, by a capture that does not come out as before."""
    planted.damage(load_manifest(planted.store).shards[shard].object, 900)
    assert repair(planted.store).withdrawn == [shard]
    rows = slice(8 * shard, 8 * shard + 8)
    planted.payload[rows] = planted.payload[rows][:, ::-1]
    planted.payload[rows] *= planted.rows.loss_mask[rows, :, None]
    assert planted.writer.commit(*planted.shard(shard))
    publish(planted.store, planted.generation)


def test_all_manifests_keep_their_objects_unless_told_otherwise(plant: Plant) -> None:
    planted = plant(packed=False).publish()
    for shard in (0, 1):
        repaired(planted, shard)
    before = planted.store.list()
    assert manifest_versions(planted.store) == {1, 2, 3}
    assert gc(planted.store, now=later(2 * DAY)).entries == []
    assert planted.store.list() == before


@pytest.mark.parametrize(
    ("keep", "versions"), [(1, {3}), (2, {2, 3}), (3, {1, 2, 3}), (9, {1, 2, 3})]
)
def test_older_manifests_go_with_what_they_alone_name(
    plant: Plant, keep: int, versions: set[int]
) -> None:
    planted = plant(packed=False).publish()
    for shard in (0, 1):
        repaired(planted, shard)
    named = set()
    for version in versions:
        for shard in load_manifest(planted.store, version).shards:
            named |= {shard.object, shard.index}
    report = gc(planted.store, keep=keep, now=later(2 * DAY))
    assert report.versions == sorted({1, 2, 3} - versions)
    assert manifest_versions(planted.store) == versions
    stored = planted.store.list("data/") + planted.store.list("index/")
    assert set(stored) == named
    assert len(planted.store.list("manifests/shards-")) == len(versions)
    bad = verify(planted.store).bad
    assert bad == []


def test_a_manifest_that_was_just_replaced_stays(plant: Plant) -> None:
    planted = plant(packed=False).publish()
    make_old(planted)
    repaired(planted, 0)
    repaired(planted, 1)
    make_old(planted)
    newest = planted.store.local_path("manifests/00000003.json")
    os.utime(newest)
    # Readers of version 2 may be at work; those of version 1 have had their time.
    assert gc(planted.store, keep=1).versions == [1]
    assert manifest_versions(planted.store) == {2, 3}


def test_the_manifest_that_students_of_fewer_generations_read_stays(plant: Plant) -> None:
    planted = plant(packed=False).publish()
    repaired(planted, 0)
    publish(planted.store, appended(planted).generation)
    assert gc(planted.store, keep=1, now=later(2 * DAY)).versions == [1]
    assert load_manifest(planted.store, generations=1).version == 2
    assert load_manifest(planted.store).version == 3


def test_killed_anywhere_no_manifest_names_what_is_gone(plant: Plant) -> None:
    planted = plant(packed=False).publish()
    repaired(planted, 0)
    repaired(planted, 1)
    put_strays(planted.store)
    garbage = gc(planted.store, dry_run=True, keep=1, now=later(2 * DAY)).entries
    assert len(garbage) == len(STRAYS) + 2 + 2 + 4
    for entry in garbage:
        planted.store.delete(entry.key)
        for version in manifest_versions(planted.store):
            missing = [d for d in verify(planted.store, version=version).bad if is_missing(d)]
            assert missing == []
    assert gc(planted.store, keep=1, now=later(2 * DAY)).entries == []


def is_missing(damage: Damage) -> bool:
    return "is missing" in damage.problem


@pytest.mark.parametrize("key", ["manifests/00000001.json", "plans/0000.json"])
def test_nothing_is_deleted_where_a_record_cannot_be_read(plant: Plant, key: str) -> None:
    planted = plant().publish()
    put_strays(planted.store)
    planted.store.put(key, planted.store.get(key)[:-20])
    before = planted.store.list()
    with pytest.raises(KdscaleError, match=f"{key} is not a valid record"):
        gc(planted.store, 0, now=later(60))
    assert planted.store.list() == before


def test_an_object_whose_commit_cannot_be_read_stays(plant: Plant) -> None:
    planted = plant().publish()
    put_strays(planted.store)
    planted.store.put(commit_key(1), b"{}")
    deleted = {entry.key for entry in gc(planted.store, 0, now=later(60)).entries}
    assert deleted == {key for key in STRAYS if "/000001-" not in key}


def test_no_cache_and_no_manifest_to_keep(plant: Plant) -> None:
    planted = plant()
    planted.store.put(STRAYS[0], b"")
    with pytest.raises(KdscaleError, match="holds no cache"):
        gc(planted.store, 0, now=later(60))
    assert planted.store.list() == [STRAYS[0]]
    with pytest.raises(KdscaleError, match="keep is 0"):
        gc(planted.publish().store, keep=0)


@pytest.mark.s3
def test_collection_on_s3(plant: Plant, s3_env: S3Server) -> None:
    planted = plant(store=open_store(f"{s3_env.url}/cache-collect")).publish()
    kept = planted.store.list()
    put_strays(planted.store)
    assert gc(planted.store, 3600).entries == []
    report = gc(planted.store, 3600, now=later(7200))
    assert ({entry.key for entry in report.entries}, report.bytes) == (set(STRAYS), 60)
    assert planted.store.list() == kept
