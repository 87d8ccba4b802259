"""The contract of Store, on a real folder and a real S3 server."""

import multiprocessing
import os
import pickle
import time
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier
from typing import Any

import pytest

from kdscale.errors import KdscaleError
from kdscale.store import Store, open_store


@pytest.fixture(
    params=[
        "local",
        pytest.param("fsspec", marks=pytest.mark.s3),
        pytest.param("obstore", marks=pytest.mark.s3),
    ]
)
def store(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    """Return a folder, and a real S3 server through either client."""
    if request.param == "local":
        return open_store(str(tmp_path / "store"))
    monkeypatch.setenv("KDSCALE_STORE", request.param)
    server = request.getfixturevalue("s3_env")
    return open_store(f"{server.url}/{uuid.uuid4().hex}")


def test_what_is_put_is_what_is_got(store: Store) -> None:
    for data in (b"", b"one", bytes(range(256)) * 5000):
        store.put("deep/er/object", data)
        assert store.get("deep/er/object") == data
        assert store.size("deep/er/object") == len(data)
        assert store.exists("deep/er/object")


def test_a_missing_key(store: Store) -> None:
    store.put("folder/object", b"x")
    for key in ("missing", "folder", "folder/object/below"):
        assert not store.exists(key)
        for read in (store.get, store.size, lambda key: store.get_range(key, 0, 1)):
            with pytest.raises(FileNotFoundError, match=key):
                read(key)
    store.delete("missing")
    assert store.list() == ["folder/object"]


def test_get_range_is_exact(store: Store) -> None:
    store.put("object", bytes(range(100)))
    assert store.get_range("object", 0, 100) == bytes(range(100))
    assert store.get_range("object", 17, 3) == bytes([17, 18, 19])
    assert store.get_range("object", 50, 0) == b""
    for start, length in ((90, 11), (100, 1), (500, 1)):
        with pytest.raises(OSError, match="object"):
            store.get_range("object", start, length)


def test_get_ranges_are_exact_and_in_order(store: Store) -> None:
    data = os.urandom(3_000_000)
    store.put("object", data)
    spans = [(2_000_000, 999_999), (0, 10), (5, 0), (5, 10), (0, 3_000_000)] + [
        (start, 7) for start in range(0, 100, 3)
    ]
    wanted = [data[start : start + length] for start, length in spans]
    got = store.get_ranges("object", spans)
    assert got == wanted
    assert {type(piece) for piece in got} == {bytes}
    assert store.get_ranges("object", []) == []
    with pytest.raises(OSError, match="object"):
        store.get_ranges("object", [(0, 10), (2_999_999, 2)])
    with pytest.raises(FileNotFoundError, match="missing"):
        store.get_ranges("missing", [(0, 1), (1, 1)])
    with pytest.raises(AssertionError):
        store.get_ranges("object", [(0, 1), (-1, 1)])


def test_entries_tell_size_and_age(store: Store) -> None:
    assert store.entries() == []
    before = time.time()
    for key, size in (("b/2", 2), ("a", 0), ("b/c/3", 3)):
        store.put(key, b"x" * size)
    after = time.time()
    entries = store.entries()
    assert [(entry.key, entry.size) for entry in entries] == [("a", 0), ("b/2", 2), ("b/c/3", 3)]
    # S3 tells whole seconds.
    assert all(before - 1 <= entry.modified <= after + 1 for entry in entries)
    assert [entry.key for entry in store.entries("b/")] == ["b/2", "b/c/3"]
    assert [entry.key for entry in store.child("b").entries("c")] == ["c/3"]
    assert store.leftovers() == []


@pytest.mark.parametrize("key", ["a b", "per%20cent", "plus+", "q?x=1#y", "ü", "t~*'()!=&@:,;$"])
def test_keys_are_taken_as_they_are(store: Store, key: str) -> None:
    store.put(f"folder/{key}", key.encode())
    assert store.get(f"folder/{key}") == key.encode()
    assert store.get_range(f"folder/{key}", 0, 1) == key.encode()[:1]
    assert store.put_if_absent(f"folder/{key}", b"another") is False
    assert store.list("folder/") == [f"folder/{key}"]
    store.delete(f"folder/{key}")
    assert store.list() == []


def test_list_is_by_prefix_sorted_and_fresh(store: Store) -> None:
    assert store.list() == []
    assert store.list("nothing/here") == []
    for key in ("b/2", "a", "b/1", "b/c/3", "bb"):
        store.put(key, b"x")
    assert store.list() == ["a", "b/1", "b/2", "b/c/3", "bb"]
    assert store.list("b") == ["b/1", "b/2", "b/c/3", "bb"]
    assert store.list("b/") == ["b/1", "b/2", "b/c/3"]
    assert store.list("b/c") == ["b/c/3"]
    store.delete("b/1")
    assert store.list("b/") == ["b/2", "b/c/3"]


def test_put_if_absent_tells_mine_from_theirs(store: Store) -> None:
    assert store.put_if_absent("commit", b"mine") is True
    assert store.put_if_absent("commit", b"mine") is True
    assert store.put_if_absent("commit", b"theirs") is False
    assert store.get("commit") == b"mine"
    assert store.list() == ["commit"]


def test_one_winner_of_sixteen_in_each_of_eight_rounds(store: Store) -> None:
    # The rounds overlap, because SeaweedFS lets a writer that meets another one wait for a second.
    writers, rounds = 16, 8
    stores = [pickle.loads(pickle.dumps(store)) for _ in range(writers)]
    barriers = [Barrier(writers) for _ in range(rounds)]

    def write(number: int, writer: int) -> bool:
        barriers[number].wait()
        return stores[writer].put_if_absent(f"commits/{number}", b"writer %d" % writer)

    with ThreadPoolExecutor(writers * rounds) as pool:
        won = [
            [pool.submit(write, number, writer) for writer in range(writers)]
            for number in range(rounds)
        ]
    for number, answers in enumerate(won):
        winners = [writer for writer, answer in enumerate(answers) if answer.result()]
        assert len(winners) == 1, f"round {number}: {winners}"
        assert store.get(f"commits/{number}") == b"writer %d" % winners[0]


def test_children_are_stores_of_their_own(store: Store) -> None:
    child = store.child("cache/abc")
    child.put("object", b"x")
    assert store.list() == ["cache/abc/object"]
    assert child.list() == ["object"]
    assert child.url == f"{store.url}/cache/abc"
    assert child == store.child("cache").child("abc")
    assert len({child, store, store.child("cache/abc")}) == 2


def test_files_of_any_size_pass_by(store: Store, tmp_path: Path) -> None:
    source, target = tmp_path / "source", tmp_path / "new folder" / "target"
    source.write_bytes(os.urandom(3_000_000))
    store.put_file("model", source)
    store.get_file("model", target)
    assert target.read_bytes() == source.read_bytes()
    assert list(target.parent.iterdir()) == [target]
    with pytest.raises(FileNotFoundError):
        store.get_file("missing", target)
    assert list(target.parent.iterdir()) == [target]


def test_keys_stay_inside_the_store(store: Store) -> None:
    for key in ("", "../up", "/absolute", "a//b", "a/./b", "a/"):
        with pytest.raises(KdscaleError, match="not a key"):
            store.put(key, b"x")


def test_check_leaves_nothing_behind(store: Store) -> None:
    store.check()
    assert store.list() == []


def test_pickling_drops_the_connection(store: Store) -> None:
    store.put("object", b"x")
    text = pickle.dumps(store.child("a"))
    assert len(text) < 1000
    copy = pickle.loads(text)
    assert copy == store.child("a")
    copy.put("object", b"y")
    assert store.list() == ["a/object", "object"]


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_other_processes_open_their_own(store: Store, method: str) -> None:
    store.put("parent", b"from the parent")
    run_in_process(method, read_and_write, store)
    assert store.get("child") == b"from the parent, seen by the child"


def read_and_write(store: Store) -> None:
    store.put("child", store.get("parent") + b", seen by the child")


def run_in_process(method: str, function: Callable[..., None], *arguments: Any) -> None:
    context: Any = multiprocessing.get_context(method)
    process = context.Process(target=function, args=arguments)
    process.start()
    process.join(60)
    if process.exitcode is None:
        process.kill()
    assert process.exitcode == 0


def test_relative_paths_are_made_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/somewhere")
    assert open_store("runs/../runs/a/").url == f"{tmp_path}/runs/a"
    assert open_store(f"file://{tmp_path}/b").url == f"{tmp_path}/b"
    assert open_store("~/c").url == "/somewhere/c"
    assert open_store("runs").local_path("x/y") == tmp_path / "runs" / "x" / "y"
    assert open_store("runs").local_path() == tmp_path / "runs"
    assert open_store("s3://bucket/a/").url == "s3://bucket/a"
    assert open_store("s3://bucket").local_path("x") is None


@pytest.mark.parametrize(
    ("url", "problem"),
    [
        ("", "names no place"),
        ("file://", "names no place"),
        ("s3://", "names no bucket"),
        ("warp://bucket", "unknown protocol 'warp'"),
        ("warp://user:hunter2@bucket", "warp://***@bucket"),
    ],
)
def test_urls_that_name_no_store(url: str, problem: str) -> None:
    with pytest.raises(KdscaleError) as caught:
        open_store(url)
    assert problem in caught.value.problem
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize("conditional", [True, False])
def test_other_protocols_of_fsspec(conditional: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not conditional:
        monkeypatch.setattr("kdscale.store.fsspec_backend._CONDITIONAL", set())
    store = open_store(f"memory://{uuid.uuid4().hex}")
    assert store.put_if_absent("a", b"1") is True
    assert store.put_if_absent("a", b"1") is True
    assert store.put_if_absent("a", b"2") is False
    assert store.list() == ["a"]
    store.check()
