"""What only a store in a folder does: folders come and go, killed writers leave files."""

import os
import threading
from pathlib import Path
from typing import Any

import pytest

from kdscale.errors import StoreError
from kdscale.store import open_store
from kdscale.store.local import LocalStore


def test_a_folder_goes_with_its_last_object_and_the_store_stays(tmp_path: Path) -> None:
    store = open_store(str(tmp_path / "store"))
    for key in ("a/b/c/1", "a/b/2", "a/3"):
        store.put(key, b"x")
    store.delete("a/b/c/1")
    assert not (tmp_path / "store/a/b/c").exists()
    assert store.list() == ["a/3", "a/b/2"]
    store.delete("a/b/2")
    store.delete("a/b/2")
    assert not (tmp_path / "store/a/b").exists()
    store.child("a").delete("3")
    assert (tmp_path / "store/a").is_dir()
    store.put("a/3", b"x")
    store.delete("a/3/below")
    assert store.list() == ["a/3"]
    store.delete("a/3")
    assert list((tmp_path / "store").iterdir()) == []


def test_leftovers_of_killed_writers_are_shown_and_deleted(tmp_path: Path) -> None:
    store = open_store(str(tmp_path))
    store.put("a/object", b"whole")
    (tmp_path / "a/.kdscale-123.tmp").write_bytes(b"half")
    (tmp_path / "b").mkdir()
    (tmp_path / "b/.kdscale-456.tmp").write_bytes(b"")
    os.utime(tmp_path / "b/.kdscale-456.tmp", (1000.0, 1000.0))
    found = {entry.key: entry for entry in store.leftovers()}
    assert set(found) == {"a/.kdscale-123.tmp", "b/.kdscale-456.tmp"}
    assert found["a/.kdscale-123.tmp"].size == 4
    assert found["b/.kdscale-456.tmp"].modified == 1000.0
    assert store.list() == [entry.key for entry in store.entries()] == ["a/object"]
    for key in found:
        store.delete(key)
    assert store.leftovers() == []
    assert not (tmp_path / "b").exists()
    assert store.get("a/object") == b"whole"


def test_a_writer_and_a_deleter_of_one_folder_do_not_harm_each_other(tmp_path: Path) -> None:
    store = open_store(str(tmp_path))
    errors: list[BaseException] = []

    def turn(name: str) -> None:
        try:
            for number in range(300):
                assert store.put_if_absent(f"x/y/{name}-{number}", b"1") is True
                store.put(f"x/y/{name}-{number}", b"2")
                store.delete(f"x/y/{name}-{number}")
        except BaseException as error:
            errors.append(error)
            raise

    threads = [threading.Thread(target=turn, args=(f"{n}",)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert list(tmp_path.iterdir()) == []


def test_a_writer_whose_new_folder_is_removed_makes_it_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = open_store(str(tmp_path))
    real, removals = Path.mkdir, [1, 2, 3]

    def mkdir(self: Path, *arguments: Any, **options: Any) -> None:
        """As it is when another process deletes the folder's last object right after."""
        real(self, *arguments, **options)
        if self.name == "folder" and removals:
            removals.pop()
            self.rmdir()

    monkeypatch.setattr(Path, "mkdir", mkdir)
    assert store.put_if_absent("folder/a", b"1") is True
    assert removals == []
    removals += [1]
    store.put("other/folder/b", b"2")
    assert removals == []
    assert store.list() == ["folder/a", "other/folder/b"]
    with pytest.raises(StoreError, match="File exists"):
        store.put("folder/a/below", b"3")


def test_a_listing_survives_what_vanishes_under_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = open_store(str(tmp_path))
    store.put("b", b"x")
    monkeypatch.setattr(LocalStore, "list", lambda self, prefix: ["a-deleted-one", "b"])
    assert [entry.key for entry in store.entries()] == ["b"]
