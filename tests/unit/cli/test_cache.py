"""`kdscale cache`: finds the cache, tells its facts, and finds a flipped bit."""

import json
from pathlib import Path

import pytest
import yaml

from kdscale.cache.manifest import load_manifest
from kdscale.cache.writer import committed_units
from kdscale.cli import main
from kdscale.store import open_store
from tests.unit.cache.planted import Planted, make_planted


@pytest.fixture
def cache(tmp_path: Path) -> Planted:
    """23 rows in units of 8, at the place where a run keeps its cache."""
    return make_planted(open_store(str(tmp_path / "run")).child("cache/0123")).publish()


def run(*arguments: str) -> int:
    with pytest.raises(SystemExit) as caught:
        main(["cache", *arguments])
    return int(caught.value.code or 0)


def record(output: Path, fingerprint: str) -> None:
    content = {"stages": {"cache": {"state": "complete", "fingerprint": fingerprint}}}
    open_store(str(output)).put("run.json", json.dumps(content).encode())


def test_inspect_by_folder_and_by_run(
    cache: Planted, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("inspect", cache.store.url) == 0
    facts = yaml.safe_load(capsys.readouterr().out)
    assert (facts["rows"], facts["units"], facts["version"]) == (23, 3, 1)
    assert facts["identity"]["vocab_size"] == 50
    record(tmp_path / "run", "0123")
    assert run("inspect", str(tmp_path / "run")) == 0
    assert yaml.safe_load(capsys.readouterr().out) == facts


def test_the_run_s_last_cache_is_meant(
    cache: Planted, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    newer = open_store(str(tmp_path / "run")).child("cache/4567")
    make_planted(newer, rows=5).publish()
    record(tmp_path / "run", "4567")
    assert run("inspect", str(tmp_path / "run")) == 0
    assert yaml.safe_load(capsys.readouterr().out)["rows"] == 5


@pytest.mark.parametrize("fingerprint", [None, "89ab"])
def test_no_cache(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], fingerprint: str | None
) -> None:
    if fingerprint:
        record(tmp_path, fingerprint)
    assert run("inspect", str(tmp_path)) == 2
    assert f"error: {tmp_path} is neither a finished cache nor" in capsys.readouterr().err


def test_verify_and_repair(cache: Planted, capsys: pytest.CaptureFixture[str]) -> None:
    url = cache.store.url
    assert run("verify", url) == 0
    assert "6 objects, 9 blocks" in capsys.readouterr().out
    assert run("repair", url) == 0
    assert "nothing is damaged" in capsys.readouterr().out

    unit = load_manifest(cache.store).units[1]
    cache.damage(unit.object, unit.blocks[0].offset + 64)
    assert run("verify", url) == 1
    out, err = capsys.readouterr()
    # The block and, with it, the object.
    assert ", 2 bad\n" in out
    assert f"bad: unit 1: {unit.object} " in out
    assert "kdscale cache repair" in err

    assert run("repair", url) == 0
    assert "withdrew units 1\n" in capsys.readouterr().out
    assert committed_units(cache.store) == {0, 2}


def test_sample_without_its_tokenizer(cache: Planted, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("inspect", cache.store.url, "--sample", "2") == 2
    assert capsys.readouterr().err.startswith("error: ")
