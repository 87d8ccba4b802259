"""Repair mends what the cache has the means to mend, and has nothing healthy captured again."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest

from kdscale.cache.commit.manifest import load_manifest, publish
from kdscale.cache.commit.writer import committed_shards
from kdscale.cache.format.records import Commit, commit_key, read_record
from kdscale.cache.maintain.repair import RepairReport, repair
from kdscale.cache.maintain.verify import verify
from kdscale.cache.read.reader import CacheReader
from kdscale.errors import KdscaleError
from kdscale.store import Store
from kdscale.store.local import LocalStore
from tests.unit.cache.planted import Plant, Planted, assert_same_rows
from tests.unit.cache.test_commit import appended


def content(store: Store) -> dict[str, bytes]:
    return {key: store.get(key) for key in store.list()}


def assert_whole(planted: Planted) -> None:
    """Assert that the cache is verified, and decoded as it was planted."""
    assert verify(planted.store).bad == []
    found = CacheReader(planted.store).read(np.arange(len(planted.rows)))
    assert_same_rows(found.rows, planted.rows)
    assert np.array_equal(found.payload, planted.payload)


def harm(planted: Planted, shard: int) -> None:
    planted.damage(load_manifest(planted.store).shards[shard].object, 900)


def test_a_sound_cache_is_left_alone(plant: Plant) -> None:
    planted = plant().publish()
    before = content(planted.store)
    assert repair(planted.store) == RepairReport([], [], [])
    assert content(planted.store) == before


def test_a_damaged_shard_alone_is_captured_again(plant: Plant) -> None:
    planted = plant().publish()
    before = {key: data for key, data in content(planted.store).items() if "commits/" not in key}
    harm(planted, 1)
    assert repair(planted.store) == RepairReport([], [1], [])
    assert committed_shards(planted.store, planted.generation) == {0, 2}
    assert planted.writer.commit(*planted.shard(1))
    # The same capture gives the same bytes, and nothing is left to publish.
    assert publish(planted.store, planted.generation).version == 1
    assert {k: v for k, v in content(planted.store).items() if "commits/" not in k} == before
    assert_whole(planted)


def test_a_capture_that_comes_out_otherwise_is_a_new_version(plant: Plant) -> None:
    planted = plant(packed=False).publish()
    old = CacheReader(planted.store)
    harm(planted, 1)
    assert repair(planted.store).withdrawn == [1]
    planted.payload[8:16] = np.roll(planted.payload[8:16], 1, axis=1)
    assert planted.writer.commit(*planted.shard(1))
    assert publish(planted.store, planted.generation).version == 2
    assert (old.manifest.version, load_manifest(planted.store).version) == (1, 2)
    found = CacheReader(planted.store).read(np.arange(23))
    assert np.array_equal(found.payload, planted.payload)


@pytest.mark.parametrize("left", [None, b"{}", b"not json"])
def test_a_lost_commit_is_written_again_from_the_manifest(plant: Plant, left: bytes | None) -> None:
    planted = plant().publish()
    before = content(planted.store)
    planted.store.delete(commit_key(2))
    if left is not None:
        planted.store.put(commit_key(2), left)
    assert repair(planted.store) == RepairReport([commit_key(2)], [], [])
    after = content(planted.store)
    old, new = before.pop(commit_key(2)), after.pop(commit_key(2))
    assert after == before
    assert Commit.model_validate_json(old).as_shard() == Commit.model_validate_json(new).as_shard()
    assert_whole(planted)


def test_a_commit_of_another_shard_gives_way_to_the_manifest(plant: Plant) -> None:
    planted = plant().publish()
    planted.store.put(commit_key(0), planted.store.get(commit_key(1)))
    assert repair(planted.store) == RepairReport([commit_key(0)], [], [])
    assert read_record(Commit, planted.store, commit_key(0)).shard == 0
    assert_whole(planted)


def test_a_shard_captured_again_but_not_published_is_not_captured_once_more(plant: Plant) -> None:
    planted = plant(packed=False).publish()
    harm(planted, 1)
    repair(planted.store)
    planted.payload[8:16] = np.roll(planted.payload[8:16], 1, axis=1)
    assert planted.writer.commit(*planted.shard(1))
    # The driver died here. The manifest names the damaged object still.
    assert {damage.key[:7] for damage in verify(planted.store).bad} == {"data/00", "commits"}
    assert repair(planted.store) == RepairReport([commit_key(1)], [], [])
    assert load_manifest(planted.store).version == 2
    assert_whole(planted)


def drop_table(planted: Planted) -> None:
    (key,) = planted.store.list("manifests/shards-")
    planted.store.delete(key)


def cut_manifest(planted: Planted) -> None:
    key = "manifests/00000001.json"
    planted.store.put(key, planted.store.get(key)[:-30])


def drop_plan(planted: Planted) -> None:
    planted.store.delete("plans/0000.json")


def change_prior(planted: Planted) -> None:
    (key,) = planted.store.list("prior/")
    planted.damage(key, 40)


def drop_prior(planted: Planted) -> None:
    (key,) = planted.store.list("prior/")
    planted.store.delete(key)


SHARED = [drop_table, cut_manifest, drop_plan, change_prior, drop_prior]


@pytest.mark.parametrize("damage", SHARED)
def test_what_shards_share_is_written_again_byte_by_byte(
    plant: Plant, damage: Callable[[Planted], None]
) -> None:
    planted = plant().publish()
    before = content(planted.store)
    damage(planted)
    report = repair(planted.store)
    assert (report.withdrawn, report.lost) == ([], [])
    assert len(report.restored) == 1
    assert content(planted.store) == before


def test_everything_at_once(plant: Plant) -> None:
    planted = plant().publish()
    before = content(planted.store)
    for damage in (drop_plan, change_prior):
        damage(planted)
    planted.store.delete(commit_key(0))
    report = repair(planted.store)
    (prior,) = planted.store.list("prior/")
    assert sorted(report.restored) == [commit_key(0), "plans/0000.json", prior]
    assert (report.withdrawn, report.lost) == ([], [])
    assert content(planted.store).keys() == before.keys()
    assert_whole(planted)


def test_a_damaged_table_and_a_damaged_shard(plant: Plant) -> None:
    planted = plant().publish()
    harm(planted, 2)
    drop_table(planted)
    report = repair(planted.store)
    assert report == RepairReport(["manifests/00000001.json"], [2], [])
    assert planted.writer.commit(*planted.shard(2))
    assert_whole(planted)


def test_a_manifest_without_its_commits_waits_for_the_capture(plant: Plant) -> None:
    planted = plant().publish()
    planted.store.delete(commit_key(1))
    cut_manifest(planted)
    with pytest.raises(KdscaleError, match="is not complete: 2 of 3 shards"):
        repair(planted.store)
    assert planted.writer.commit(*planted.shard(1))
    publish(planted.store, planted.generation)
    assert_whole(planted)


def test_a_prior_that_cannot_be_counted_again_is_lost_and_nothing_is_withdrawn(
    plant: Plant,
) -> None:
    planted = plant().publish()
    harm(planted, 1)
    change_prior(planted)
    before = content(planted.store)
    report = repair(planted.store)
    assert (report.restored, report.withdrawn) == ([], [])
    assert [damage.key for damage in report.lost] == planted.store.list("prior/")
    assert content(planted.store) == before


def test_each_generation_s_prior_is_counted_from_its_own_rows(plant: Plant) -> None:
    planted = plant().publish()
    publish(planted.store, appended(planted).generation)
    before = content(planted.store)
    keys = planted.store.list("prior/")
    assert len(keys) == 2
    for key in keys:
        planted.damage(key, 40)
    assert sorted(repair(planted.store).restored) == keys
    assert content(planted.store) == before


class KilledError(Exception):
    """The end of a process, for those who look on."""


@dataclass(frozen=True, repr=False)
class DyingStore(LocalStore):
    """A store whose process ends at its change number `change`."""

    change: int = 0
    changes: list[str] = field(default_factory=list, compare=False)

    def _counted(self, name: str, *arguments: Any) -> Any:
        self.changes.append(name)
        if len(self.changes) > self.change:
            raise KilledError
        return getattr(LocalStore, name)(self, *arguments)

    def put(self, key: str, data: bytes) -> None:
        self._counted("put", key, data)

    def delete(self, key: str) -> None:
        self._counted("delete", key)

    def put_if_absent(self, key: str, data: bytes) -> bool:
        return bool(self._counted("put_if_absent", key, data))


@pytest.mark.parametrize("damage", [*SHARED, lambda planted: planted.store.delete(commit_key(1))])
def test_a_repair_that_is_killed_anywhere_is_done_by_the_next(
    plant: Plant, damage: Callable[[Planted], None]
) -> None:
    planted = plant().publish()
    for change in range(10):
        damage(planted)
        dying = DyingStore(planted.store.url, change=change)
        try:
            repair(dying)
        except KilledError:
            if planted.store.list("manifests/0"):
                report = repair(planted.store)
                assert (report.withdrawn, report.lost) == ([], [])
            else:
                # The cache stage would find nothing to capture, and publish.
                publish(planted.store, planted.generation)
        else:
            assert change > 0
            break
        assert_whole(planted)
        assert load_manifest(planted.store).version == 1
    else:
        pytest.fail("a repair changes the store ten times")
    assert_whole(planted)
