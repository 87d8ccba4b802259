"""A cache is made exactly once, whoever dies and whoever comes twice."""

import json
import multiprocessing
import os
import signal
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kdscale.cache.identity import check_identity
from kdscale.cache.manifest import load_manifest, manifest_versions, publish
from kdscale.cache.plan import agree_plan, load_plan, make_plan
from kdscale.cache.reader import CacheReader
from kdscale.cache.records import Commit, read_record
from kdscale.cache.writer import UnitWriter, committed_units
from kdscale.config import fingerprint
from kdscale.errors import KdscaleError
from kdscale.store.local import LocalStore
from tests.unit.cache.planted import Plant, Planted, assert_same_rows

# Store calls of one commit: put object, look at its size, the same for the index, commit.
CALLS_OF_A_COMMIT = 5


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
            os.kill(os.getpid(), signal.SIGKILL)
        result = getattr(LocalStore, name)(self, *arguments)
        if last:
            os.kill(os.getpid(), signal.SIGKILL)
        return result

    def put(self, key: str, data: bytes) -> None:
        self._counted("put", key, data)

    def size(self, key: str) -> int:
        return int(self._counted("size", key))

    def put_if_absent(self, key: str, data: bytes) -> bool:
        return bool(self._counted("put_if_absent", key, data))


def test_plan_covers_every_row_once() -> None:
    plan = make_plan(23, 8)
    assert plan.units == [range(8), range(8, 16), range(16, 23)]
    assert make_plan(16, 8).units == [range(8), range(8, 16)]
    with pytest.raises(KdscaleError, match="nothing to capture: 0 rows"):
        make_plan(0, 8)


def test_plan_is_fixed_by_the_first_run_and_matched_by_the_next(plant: Plant) -> None:
    planted = plant()
    planted.agree()
    first = load_plan(planted.store)
    planted.agree()
    assert load_plan(planted.store) == first
    assert (first.rows, first.rows_per_unit, first.identity) == (23, 8, planted.identity)


def test_another_plan_is_refused_with_every_field_that_differs(plant: Plant) -> None:
    planted = plant()
    planted.agree()
    other = planted.identity | {"tokenizer": "00" * 8, "temperature": 2.0}
    with pytest.raises(KdscaleError) as caught:
        agree_plan(planted.store, other, make_plan(23, 4), np.arange(23)[::-1])
    problem = caught.value.problem
    for line in (
        'tokenizer: the cache has "cdcdcdcdcdcdcdcd", expected "0000000000000000"',
        "temperature: the cache has 1.0, expected 2.0",
        "rows_per_unit: the cache has 8, expected 4",
        "rows_digest: ",
    ):
        assert line in problem
    assert "seed" not in problem


def test_identity_field_that_only_one_side_has_differs(plant: Plant) -> None:
    planted = plant()
    planted.agree()
    less = {name: value for name, value in planted.identity.items() if name != "dtype"}
    with pytest.raises(KdscaleError, match='dtype: the cache has "float32", expected null'):
        agree_plan(planted.store, less, planted.plan, np.arange(23))
    with pytest.raises(KdscaleError, match='prefix: the cache has null, expected "x"'):
        check_identity(planted.identity, {"prefix": "x"})
    check_identity({"codec": {"k": [1, 2]}}, {"codec": {"k": (1, 2)}})


def test_commit_names_what_it_stored(plant: Plant) -> None:
    planted = plant()
    assert committed_units(planted.store) == set()
    assert planted.writer.commit(*planted.unit(2))
    assert committed_units(planted.store) == {2}
    commit = read_record(Commit, planted.store, "commits/000002.json")
    assert commit.rows == 7
    assert commit.targets == planted.rows.loss_mask[16:].sum()
    assert commit.length == planted.store.size(commit.object)
    assert commit.index_length == planted.store.size(commit.index)
    assert planted.store.list("data/") == [f"data/000002-{commit.digest[:16]}.arrow"]


def test_second_attempt_with_equal_content_keeps_the_object(plant: Plant) -> None:
    planted = plant()
    assert planted.writer.commit(*planted.unit(0))
    before = planted.store.list()
    assert not planted.writer.commit(*planted.unit(0))
    assert planted.store.list() == before


def test_second_attempt_with_other_content_leaves_nothing(plant: Plant) -> None:
    planted = plant()
    assert planted.writer.commit(*planted.unit(0))
    before = planted.store.list()
    unit, rows, payload, stats = planted.unit(0)
    assert not planted.writer.commit(unit, rows, payload ^ 1, stats)
    assert planted.store.list() == before


def race(planted: Planted, number: int) -> list[bool]:
    """What eight simultaneous attempts at one unit are told."""
    unit, rows, payload, stats = planted.unit(number)
    barrier = threading.Barrier(8)

    def work(change: int) -> bool:
        barrier.wait()
        # Half of them differ, as a GPU's rounding would make them.
        return planted.writer.commit(unit, rows, payload ^ np.uint8(change % 4), stats)

    with ThreadPoolExecutor(8) as pool:
        return list(pool.map(work, range(8)))


def test_of_simultaneous_workers_exactly_one_commits(plant: Plant) -> None:
    planted = plant()
    planted.agree()
    for number in range(len(planted.plan.units)):
        assert sorted(race(planted, number)) == [False] * 7 + [True]
    commits = [read_record(Commit, planted.store, key) for key in planted.store.list("commits/")]
    assert planted.store.list("data/") == [commit.object for commit in commits]
    assert planted.store.list("index/") == [commit.index for commit in commits]


def test_an_attempt_whose_twin_has_lost_and_cleaned_up_loses_too(plant: Plant) -> None:
    """Same content, same key: the twin deletes it between this attempt's write and its look."""
    planted = plant()
    planted.agree()
    unit, rows, payload, stats = planted.unit(0)
    assert planted.writer.commit(unit, rows, payload, stats)
    before = planted.store.list()

    class Cleaned(LocalStore):
        def size(self, key: str) -> int:
            if key.startswith("data/"):
                self.delete(key)
            return super().size(key)

    writer = UnitWriter(Cleaned(planted.store.url), planted.identity, rows_per_block=4)
    assert not writer.commit(unit, rows, payload ^ np.uint8(1), stats)
    assert planted.store.list() == before
    with pytest.raises(KdscaleError, match="holds 0 bytes after a write"):
        writer.commit(*planted.unit(1))


@pytest.mark.fault
@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("call", range(CALLS_OF_A_COMMIT))
def test_writer_killed_at_any_store_call_loses_and_doubles_nothing(
    plant: Plant, call: int, after: bool
) -> None:
    planted = plant()
    planted.agree()
    store = DyingStore(planted.store.url, call=call, after=after)
    writer = UnitWriter(store, planted.identity, rows_per_block=3)
    child = multiprocessing.get_context("fork").Process(target=writer.commit, args=planted.unit(0))
    child.start()
    child.join()
    assert child.exitcode == -signal.SIGKILL
    committed = call == CALLS_OF_A_COMMIT - 1 and after
    assert committed_units(planted.store) == ({0} if committed else set())

    for unit in sorted({0, 1, 2} - committed_units(planted.store)):
        assert planted.writer.commit(*planted.unit(unit))
    publish(planted.store, planted.identity, planted.plan)
    reader = CacheReader(planted.store)
    assert_same_rows(reader.read(np.arange(23)).rows, planted.rows)


def test_killed_commit_makes_exactly_the_calls_that_the_test_kills(
    plant: Plant, tmp_path: Path
) -> None:
    planted = plant()
    store = DyingStore(str(tmp_path / "other"), call=99)
    UnitWriter(store, planted.identity, rows_per_block=3).commit(*planted.unit(0))
    assert store.calls == ["put", "size", "put", "size", "put_if_absent"]


def test_object_that_arrived_short_is_not_committed(plant: Plant, tmp_path: Path) -> None:
    class Short(LocalStore):
        def put(self, key: str, data: bytes) -> None:
            super().put(key, data[:-7])

    planted = plant(store=Short(str(tmp_path / "short")))
    with pytest.raises(KdscaleError, match=r"data/000000-.* bytes after a write of"):
        planted.writer.commit(*planted.unit(0))
    assert committed_units(planted.store) == set()


def test_publishing_needs_every_unit(plant: Plant) -> None:
    planted = plant()
    planted.agree()
    planted.writer.commit(*planted.unit(0))
    with pytest.raises(KdscaleError, match=r"2 of 3 units .* the first is unit 1"):
        publish(planted.store, planted.identity, planted.plan)
    with pytest.raises(KdscaleError, match="1 of 3 units are committed"):
        load_manifest(planted.store)


def test_no_cache_at_all_is_said_so(plant: Plant) -> None:
    with pytest.raises(KdscaleError, match=r"holds no cache: plan\.json is missing"):
        load_manifest(plant().store)


def test_publishing_twice_changes_nothing(plant: Plant) -> None:
    planted = plant().publish()
    first = load_manifest(planted.store)
    assert publish(planted.store, planted.identity, planted.plan) == first
    assert manifest_versions(planted.store) == {1}
    assert first.version == 1
    assert first.rows == 23
    assert first.fingerprint == fingerprint(planted.identity)


def test_simultaneous_publishers_agree_on_one_manifest(plant: Plant) -> None:
    planted = plant()
    planted.agree()
    for unit in range(3):
        planted.writer.commit(*planted.unit(unit))
    found, barrier = [], threading.Barrier(6)

    def work() -> None:
        barrier.wait()
        found.append(publish(planted.store, planted.identity, planted.plan))

    threads = [threading.Thread(target=work) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert manifest_versions(planted.store) == {1}
    assert found == [load_manifest(planted.store)] * 6


def test_unit_captured_again_gives_a_new_version_and_leaves_the_old_one(plant: Plant) -> None:
    planted = plant().publish()
    reader = CacheReader(planted.store)
    planted.store.delete("commits/000001.json")
    unit, rows, payload, stats = planted.unit(1)
    planted.writer.commit(unit, rows, payload ^ 1, stats)
    assert publish(planted.store, planted.identity, planted.plan).version == 2
    assert np.array_equal(reader.read(np.arange(8, 16)).payload, payload)
    again = CacheReader(planted.store)
    assert np.array_equal(again.read(np.arange(8, 16)).payload, payload ^ 1)
    assert load_manifest(planted.store, 1) == reader.manifest
    with pytest.raises(KdscaleError, match=r"no manifest 3; it has \[1, 2\]"):
        load_manifest(planted.store, 3)


def test_publishing_another_identity_is_refused(plant: Plant) -> None:
    planted = plant().publish()
    with pytest.raises(KdscaleError, match="seed: the cache has 0, expected 1"):
        publish(planted.store, planted.identity | {"seed": 1}, planted.plan)


@pytest.mark.parametrize(
    ("field_name", "value", "message"),
    [
        ("object", "../../etc/000000-0123456789abcdef.arrow", "not the object of unit 0"),
        ("object", "/etc/passwd", "not the object of unit 0"),
        ("index", "index/../../secret", "not the index of unit 0"),
        ("unit", 1, "not the object of unit 1"),
        ("rows", 9, "do not hold its 9 rows"),
        ("length", 100, "ends behind its object"),
        ("length", -1, "greater than or equal to 0"),
        ("digest", "x" * 32, "should match pattern"),
    ],
)
def test_manifest_that_reaches_outside_or_contradicts_itself_is_refused(
    plant: Plant, field_name: str, value: object, message: str
) -> None:
    planted = plant().publish()
    key = "manifests/00000001.json"
    manifest = json.loads(planted.store.get(key))
    manifest["units"][0][field_name] = value
    planted.store.put(key, json.dumps(manifest).encode())
    with pytest.raises(KdscaleError, match=message):
        CacheReader(planted.store)


def test_manifest_with_a_unit_twice_or_another_identity_is_refused(plant: Plant) -> None:
    planted = plant().publish()
    key = "manifests/00000001.json"
    manifest = json.loads(planted.store.get(key))
    twice = manifest | {"units": manifest["units"][:2] + manifest["units"][1:2]}
    planted.store.put(key, json.dumps(twice).encode())
    with pytest.raises(KdscaleError, match="each once"):
        load_manifest(planted.store)
    other = manifest | {"identity": manifest["identity"] | {"teacher": "other"}}
    planted.store.put(key, json.dumps(other).encode())
    with pytest.raises(KdscaleError, match="not that of the identity"):
        load_manifest(planted.store)
    planted.store.put(key, json.dumps(manifest | {"format": 2}).encode())
    with pytest.raises(KdscaleError, match="format: Input should be 1"):
        load_manifest(planted.store)
    planted.store.put(key, b"half a mani")
    with pytest.raises(KdscaleError, match="not a valid record"):
        load_manifest(planted.store)
