"""The store's findings on a local disk, and where it fails, is slow, or goes by another clock."""

import time
from dataclasses import replace
from pathlib import Path

import pytest

from kdscale.doctor import storage
from kdscale.store import Entry, Verdict, open_store
from kdscale.store.local import LocalStore


def test_a_good_store_is_left_as_it_was(tmp_path: Path) -> None:
    found = list(storage.checks(str(tmp_path / "out")))
    assert [(check.word, check.name) for check in found] == [
        ("ok", "store"),
        ("ok", "conditional put"),
        ("ok", "store speed"),
        ("ok", "store clock"),
    ]
    assert "MB/s out" in found[2].value
    assert open_store(str(tmp_path / "out")).list() == []


def test_one_that_cannot_be_used_fails(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    (found,) = storage.checks(str(tmp_path / "file" / "out"))
    assert found.word == "failed"
    assert found.fix


def test_without_a_conditional_put_it_warns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    verdict = Verdict(False, 16, 4, (3, 1, 1, 1), "round 0: 3 of 16 simultaneous writers won")
    monkeypatch.setattr(storage, "probe", lambda store: verdict)
    found = storage.conditional_put(open_store(str(tmp_path)))
    assert (found.word, found.value) == ("warning", verdict.detail)


@pytest.mark.parametrize(
    ("offset", "word"), [(0.0, "ok"), (4.0, "ok"), (90.0, "warning"), (-90.0, "warning")]
)
def test_clocks_that_differ_warn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, offset: float, word: str
) -> None:
    entries = LocalStore.entries

    def shifted(self: LocalStore, prefix: str = "") -> list[Entry]:
        return [replace(each, modified=time.time() + offset) for each in entries(self, prefix)]

    monkeypatch.setattr(LocalStore, "entries", shifted)
    found = storage.clock(open_store(str(tmp_path)))
    assert found.word == word
    if word == "warning":
        assert ("ahead of" if offset > 0 else "behind") in found.value
