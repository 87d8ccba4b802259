"""A cache is made exactly once, whoever dies and whoever comes twice."""

import json
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kdscale.cache.commit.manifest import load_manifest, manifest_versions, publish
from kdscale.cache.commit.plan import load_plans
from kdscale.cache.commit.writer import ShardWriter, committed_shards
from kdscale.cache.format.records import Commit, Generation, read_record
from kdscale.cache.maintain.repair import repair
from kdscale.cache.read.reader import CacheReader
from kdscale.cache.rows import RowStats
from kdscale.cache.spec import check_cache_spec
from kdscale.config import fingerprint
from kdscale.errors import KdscaleError
from kdscale.store.local import LocalStore
from tests.fault.processes import Pipe, Worker, kill_me
from tests.unit.cache.planted import (
    Plant,
    Planted,
    assert_same_rows,
    changed,
    make_planted,
    stored_payload,
)

# Store calls of one commit: put object, look at its size, the same for the index, commit, and look
# at both sizes again.
CALLS_OF_A_COMMIT = 7
COMMITTING_CALL = 4


@dataclass(frozen=True, repr=False)
class DyingStore(LocalStore):
    """A store whose process is killed before (or right after) its call number `call`."""

    call: int = 0
    after: bool = False
    calls: list[str] = field(default_factory=list, compare=False)

    def _counted(self, name: str, *arguments: Any) -> Any:
        self.calls.append(name)
        last = len(self.calls) == self.call + 1
        if last and not self.after:
            kill_me()
        result = getattr(LocalStore, name)(self, *arguments)
        if last:
            kill_me()
        return result

    def put(self, key: str, data: bytes) -> None:
        self._counted("put", key, data)

    def size(self, key: str) -> int:
        return int(self._counted("size", key))

    def put_if_absent(self, key: str, data: bytes) -> bool:
        return bool(self._counted("put_if_absent", key, data))


def test_shards_cover_every_row_once(plant: Plant) -> None:
    assert plant().generation.shards == [range(8), range(8, 16), range(16, 23)]
    assert plant(rows=16).agree(request="0" * 32).shards == [range(8), range(8, 16)]


def test_nothing_to_capture_is_refused(plant: Plant) -> None:
    with pytest.raises(KdscaleError, match="nothing to capture: 0 rows"):
        plant().agree(rows=0)


def test_plan_is_fixed_by_the_first_run_and_found_by_the_next(plant: Plant) -> None:
    planted = plant()
    first = planted.agree()
    # Sizes and packing are no part of what is asked for: shards of other runs go on as planned.
    assert planted.agree(sequences_per_shard=4, sequences_per_chunk=1, count_prior=None) == first
    (plan,) = load_plans(planted.store)
    assert (plan.generation, plan.identity) == (first, planted.identity)
    assert (first.rows, first.sequences_per_shard, first.first_row, first.first_shard) == (
        23,
        8,
        0,
        0,
    )


def test_simultaneous_planners_agree(plant: Plant) -> None:
    planted, barrier = plant(), threading.Barrier(8)

    def work(_: int) -> Generation:
        barrier.wait()
        return planted.agree()

    with ThreadPoolExecutor(8) as pool:
        assert len({generation.model_dump_json() for generation in pool.map(work, range(8))}) == 1
    assert len(load_plans(planted.store)) == 1


def test_another_identity_is_refused_with_every_field_that_differs(plant: Plant) -> None:
    planted = plant()
    planted.agree()
    other = planted.identity | {"tokenizer": "00" * 8, "temperature": 2.0}
    with pytest.raises(KdscaleError) as caught:
        replace(planted, identity=other).agree()
    for line in (
        'tokenizer: the cache has "cdcdcdcdcdcdcdcd", expected "0000000000000000"',
        "temperature: the cache has 1.0, expected 2.0",
    ):
        assert line in caught.value.problem
    assert "seed" not in caught.value.problem


def test_identity_field_that_only_one_side_has_differs(plant: Plant) -> None:
    planted = plant()
    planted.agree()
    less = {name: value for name, value in planted.identity.items() if name != "dtype"}
    with pytest.raises(KdscaleError, match='dtype: the cache has "float32", expected null'):
        replace(planted, identity=less).agree()
    with pytest.raises(KdscaleError, match='prefix: the cache has null, expected "x"'):
        check_cache_spec(planted.identity, {"prefix": "x"})
    check_cache_spec({"codec": {"k": [1, 2]}}, {"codec": {"k": (1, 2)}})


def appended(planted: Planted, count: int = 10) -> Planted:
    """More rows of the same cache, planned, captured, and not yet published."""
    more = make_planted(planted.store, rows=23 + count, sequences_per_shard=4)
    at = np.arange(23, 23 + count)
    stats = RowStats(*(getattr(more.stats, f.name)[at] for f in fields(RowStats)))
    rows = more.rows.take(at)
    payload = stored_payload(more.codec, rows, more.payload[at])
    more = replace(more, rows=rows, stats=stats, payload=payload)
    more.agree(request="1" * 32)
    generation = load_plans(planted.store)[-1].generation
    more.__dict__["generation"] = generation
    for shard in range(len(generation.shards)):
        assert more.writer.commit(*more.shard(shard))
    return more


def test_a_plan_missing_before_others_is_named_and_restored(plant: Plant) -> None:
    planted = plant().publish()
    more = appended(planted)
    publish(planted.store, more.generation)
    whole = load_plans(planted.store)
    planted.store.delete("plans/0000.json")
    with pytest.raises(KdscaleError, match=r"plans/0000.json is missing(.|\n)*cache repair"):
        load_plans(planted.store)
    repair(planted.store)
    # When it was planned, only the plan itself knew.
    again = load_plans(planted.store)
    assert [plan.generation for plan in again] == [plan.generation for plan in whole]
    assert [plan.identity for plan in again] == [plan.identity for plan in whole]


def test_appended_rows_are_a_new_version_behind_the_old_rows(plant: Plant) -> None:
    planted = plant().publish()
    before = CacheReader(planted.store)
    more = appended(planted)
    assert (more.generation.first_row, more.generation.first_shard) == (23, 3)
    assert len(CacheReader(planted.store)) == 23
    assert publish(planted.store, more.generation).version == 2
    reader = CacheReader(planted.store)
    assert len(reader) == 33
    order = np.random.default_rng(2).permutation(33)
    found = reader.read(order)
    assert np.array_equal(found.payload, np.concatenate([planted.payload, more.payload])[order])
    assert np.array_equal(
        reader.statistics.nll, np.concatenate([planted.stats.nll, more.stats.nll])
    )
    assert len(before) == 23
    assert before.manifest == CacheReader(planted.store, version=1).manifest
    # The first capture's stage, run again, leaves what was appended in.
    assert publish(planted.store, planted.generation).version == 2


def test_an_append_waits_for_the_generation_before_it(plant: Plant) -> None:
    planted = plant()
    planted.agree()
    more = appended(planted)
    with pytest.raises(KdscaleError, match=r"3 of 3 shards .* the first is shard 0"):
        publish(planted.store, more.generation)


def test_commit_names_what_it_stored(plant: Plant) -> None:
    planted = plant()
    assert committed_shards(planted.store, planted.generation) == set()
    assert planted.writer.commit(*planted.shard(2))
    assert committed_shards(planted.store, planted.generation) == {2}
    commit = read_record(Commit, planted.store, "commits/000002.json")
    assert commit.rows == 7
    assert commit.targets == planted.rows.loss_mask[16:].sum()
    assert commit.length == planted.store.size(commit.object)
    assert commit.index_length == planted.store.size(commit.index)
    assert planted.store.list("data/") == [f"data/000002-{commit.digest[:16]}.arrow"]


def test_second_attempt_with_equal_content_keeps_the_object(plant: Plant) -> None:
    planted = plant()
    assert planted.writer.commit(*planted.shard(0))
    before = planted.store.list()
    assert not planted.writer.commit(*planted.shard(0))
    assert planted.store.list() == before


def test_second_attempt_with_other_content_leaves_nothing(plant: Plant) -> None:
    planted = plant()
    assert planted.writer.commit(*planted.shard(0))
    before = planted.store.list()
    shard, rows, payload, stats = planted.shard(0)
    assert not planted.writer.commit(shard, rows, changed(payload), stats)
    assert planted.store.list() == before


def race(planted: Planted, number: int) -> list[bool]:
    """Run eight simultaneous attempts at one shard and return what each got."""
    shard, rows, payload, stats = planted.shard(number)
    barrier = threading.Barrier(8)

    def work(change: int) -> bool:
        barrier.wait()
        # Half of them differ, as a GPU's rounding would make them.
        return planted.writer.commit(shard, rows, changed(payload, change % 4), stats) is not None

    with ThreadPoolExecutor(8) as pool:
        return list(pool.map(work, range(8)))


def test_of_simultaneous_workers_exactly_one_commits(plant: Plant) -> None:
    planted = plant()
    planted.agree()
    for number in range(len(planted.generation.shards)):
        assert sorted(race(planted, number)) == [False] * 7 + [True]
    commits = [read_record(Commit, planted.store, key) for key in planted.store.list("commits/")]
    assert planted.store.list("data/") == [commit.object for commit in commits]
    assert planted.store.list("index/") == [commit.index for commit in commits]


def test_an_attempt_whose_twin_has_lost_and_cleaned_up_loses_too(plant: Plant) -> None:
    """Same content, same key: the twin deletes it between this attempt's write and its look."""
    planted = plant()
    planted.agree()
    shard, rows, payload, stats = planted.shard(0)
    assert planted.writer.commit(shard, rows, payload, stats)
    before = planted.store.list()

    class Cleaned(LocalStore):
        def size(self, key: str) -> int:
            if key.startswith("data/"):
                self.delete(key)
            return super().size(key)

    writer = ShardWriter(Cleaned(planted.store.url), planted.identity, planted.generation)
    assert not writer.commit(shard, rows, changed(payload), stats)
    assert planted.store.list() == before
    with pytest.raises(KdscaleError, match="holds 0 bytes after a write"):
        writer.commit(*planted.shard(1))


def commit(_: Pipe, writer: ShardWriter, shard: tuple[Any, ...]) -> None:
    writer.commit(*shard)


@pytest.mark.fault
@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("call", range(CALLS_OF_A_COMMIT))
def test_writer_killed_at_any_store_call_loses_and_doubles_nothing(
    plant: Plant, call: int, after: bool
) -> None:
    planted = plant()
    planted.agree()
    store = DyingStore(planted.store.url, call=call, after=after)
    writer = ShardWriter(store, planted.identity, planted.generation)
    Worker(commit, writer, planted.shard(0)).await_death()
    committed = call > COMMITTING_CALL or (call == COMMITTING_CALL and after)
    assert committed_shards(planted.store, planted.generation) == ({0} if committed else set())

    for shard in sorted({0, 1, 2} - committed_shards(planted.store, planted.generation)):
        assert planted.writer.commit(*planted.shard(shard))
    publish(planted.store, planted.generation)
    reader = CacheReader(planted.store)
    assert_same_rows(reader.read(np.arange(23)).rows, planted.rows)


def test_killed_commit_makes_exactly_the_calls_that_the_test_kills(
    plant: Plant,
) -> None:
    planted = plant()
    planted.agree()
    store = DyingStore(planted.store.url, call=99)
    ShardWriter(store, planted.identity, planted.generation).commit(*planted.shard(0))
    assert store.calls == ["put", "size", "put", "size", "put_if_absent", "size", "size"]


def test_objects_that_were_collected_before_the_commit_are_put_again(plant: Plant) -> None:
    """What `gc` may do to the leftovers of a killed attempt with the same bytes."""
    planted = plant()
    planted.agree()

    def collected(key: str, data: bytes) -> bool:
        for name in planted.store.list("data/") + planted.store.list("index/"):
            planted.store.delete(name)
        return planted.store.put_if_absent(key, data)

    writer = ShardWriter(planted.store, planted.identity, planted.generation, collected)
    commit = writer.commit(*planted.shard(0))
    assert commit is not None
    assert planted.store.size(commit.object) == commit.length
    assert planted.store.size(commit.index) == commit.index_length


def test_object_that_arrived_short_is_not_committed(plant: Plant, tmp_path: Path) -> None:
    class Short(LocalStore):
        def put(self, key: str, data: bytes) -> None:
            super().put(key, data[:-7] if key.startswith("data/") else data)

    planted = plant(store=Short(str(tmp_path / "short")))
    with pytest.raises(KdscaleError, match=r"data/000000-.* bytes after a write of"):
        planted.writer.commit(*planted.shard(0))
    assert committed_shards(planted.store, planted.generation) == set()


def test_publishing_needs_every_shard(plant: Plant) -> None:
    planted = plant()
    planted.agree()
    planted.writer.commit(*planted.shard(0))
    with pytest.raises(KdscaleError, match=r"2 of 3 shards .* the first is shard 1"):
        publish(planted.store, planted.generation)
    with pytest.raises(KdscaleError, match="1 of 3 shards are committed"):
        load_manifest(planted.store)


def test_no_cache_at_all_is_said_so(plant: Plant) -> None:
    with pytest.raises(KdscaleError, match="holds no cache"):
        load_manifest(plant().store)


def test_publishing_twice_changes_nothing(plant: Plant) -> None:
    planted = plant().publish()
    first = load_manifest(planted.store)
    assert publish(planted.store, planted.generation) == first
    assert manifest_versions(planted.store) == {1}
    assert first.version == 1
    assert first.rows == 23
    assert first.record.fingerprint == fingerprint(planted.identity)


def test_simultaneous_publishers_agree_on_one_manifest(plant: Plant) -> None:
    planted = plant()
    planted.agree()
    for shard in range(3):
        planted.writer.commit(*planted.shard(shard))
    found, barrier = [], threading.Barrier(6)

    def work() -> None:
        barrier.wait()
        found.append(publish(planted.store, planted.generation))

    threads = [threading.Thread(target=work) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert manifest_versions(planted.store) == {1}
    assert found == [load_manifest(planted.store)] * 6


def test_shard_captured_again_gives_a_new_version_and_leaves_the_old_one(plant: Plant) -> None:
    planted = plant().publish()
    reader = CacheReader(planted.store)
    planted.store.delete("commits/000001.json")
    shard, rows, payload, stats = planted.shard(1)
    planted.writer.commit(shard, rows, changed(payload), stats)
    assert publish(planted.store, planted.generation).version == 2
    assert np.array_equal(reader.read(np.arange(8, 16)).payload, payload)
    again = CacheReader(planted.store)
    assert np.array_equal(again.read(np.arange(8, 16)).payload, changed(payload))
    assert load_manifest(planted.store, 1) == reader.manifest
    with pytest.raises(KdscaleError, match=r"no manifest 3; it has \[1, 2\]"):
        load_manifest(planted.store, 3)


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (["generations", 0, "first_row"], 1, "do not follow on each other"),
        (["generations", 0, "rows"], 0, "greater than 0"),
        (["generations"], [], "there is no generation"),
        (["generations", 0, "prior", "digest"], "../../../etc/passwd", "should match pattern"),
        (["shards", "digest"], "x" * 32, "should match pattern"),
        (["shards", "length"], -1, "greater than or equal to 0"),
        (["identity", "teacher"], "other", "not that of the identity"),
        (
            ["format"],
            2,
            "written by a kdscale of cache format 2; this kdscale reads and writes format 5",
        ),
        (["surplus"], 1, "Extra inputs are not permitted"),
    ],
)
def test_manifest_that_reaches_outside_or_contradicts_itself_is_refused(
    plant: Plant, path: list[str | int], value: object, message: str
) -> None:
    planted = plant().publish()
    key = "manifests/00000001.json"
    manifest = json.loads(planted.store.get(key))
    # Whoever forges a record leaves its checksum out.
    del manifest["checksum"]
    place = manifest
    for step in path[:-1]:
        place = place[step]
    place[path[-1]] = value
    planted.store.put(key, json.dumps(manifest).encode())
    with pytest.raises(KdscaleError, match=message):
        CacheReader(planted.store)
    planted.store.put(key, b"half a mani")
    with pytest.raises(KdscaleError, match="not a valid record"):
        load_manifest(planted.store)


def test_damaged_table_of_shards_or_prior_is_refused(plant: Plant) -> None:
    planted = plant().publish()
    record = load_manifest(planted.store).record
    planted.damage(record.shards_key, 700)
    with pytest.raises(KdscaleError, match=f"{record.shards_key} is corrupt"):
        CacheReader(planted.store)
    planted.damage(record.shards_key, 700)
    assert planted.generation.prior_key is not None
    planted.damage(planted.generation.prior_key, 100)
    with pytest.raises(KdscaleError, match=f"{planted.generation.prior_key} is corrupt"):
        CacheReader(planted.store).read(np.array([0]))


def test_commit_of_another_shard_is_not_published(plant: Plant) -> None:
    planted = plant()
    for shard in range(3):
        planted.writer.commit(*planted.shard(shard))
    planted.store.put("commits/000001.json", planted.store.get("commits/000000.json"))
    with pytest.raises(KdscaleError, match=r"commits/000001\.json is of shard 0 with 8 rows"):
        publish(planted.store, planted.generation)
