"""`kdscale cache`: finds the cache, tells its facts, finds a flipped bit, and tidies up."""

import json
import os
import time
from pathlib import Path

import pytest
import yaml

from kdscale.cache.commit.manifest import load_manifest
from kdscale.cache.commit.writer import committed_shards
from kdscale.cache.maintain.inspect import inspect
from kdscale.cache.maintain.stats import stats
from kdscale.cli import main
from kdscale.config import dump_config, parse_config
from kdscale.config.starter import starter_yaml
from kdscale.store import open_store
from tests.unit.cache.planted import Planted, make_planted


@pytest.fixture
def cache(tmp_path: Path) -> Planted:
    """23 rows in shards of 8, at the place where a run keeps its cache."""
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
    assert (facts["rows"], facts["shards"], facts["version"]) == (23, 3, 1)
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


def test_a_cache_that_the_config_says_is_elsewhere(
    cache: Planted, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = parse_config(starter_yaml(), [f"cache.reuse={cache.store.url}"])
    open_store(str(tmp_path / "other")).put("config.resolved.yaml", dump_config(config).encode())
    assert run("inspect", str(tmp_path / "other")) == 0
    assert yaml.safe_load(capsys.readouterr().out)["url"] == cache.store.url


def test_facts_and_numbers_as_json(cache: Planted, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("inspect", cache.store.url, "--json") == 0
    assert json.loads(capsys.readouterr().out) == inspect(cache.store)
    assert run("stats", cache.store.url, "--json") == 0
    numbers = json.loads(capsys.readouterr().out)
    assert numbers == stats(cache.store)
    assert run("stats", cache.store.url) == 0
    assert yaml.safe_load(capsys.readouterr().out) == numbers


def test_verify_finds_damage_and_repair_withdraws_it(
    cache: Planted, capsys: pytest.CaptureFixture[str]
) -> None:
    url = cache.store.url
    assert run("verify", url) == 0
    assert "3 of 3 shards, 8 objects, 9 chunks" in capsys.readouterr().out
    assert run("repair", url) == 0
    assert "nothing is damaged" in capsys.readouterr().out

    shard = load_manifest(cache.store).shards[1]
    cache.damage(shard.object, cache.chunks(1)[0].offset + 64)
    assert run("verify", url) == 1
    out, err = capsys.readouterr()
    # The chunk and, with it, the object.
    assert ", 2 bad\n" in out
    assert f"bad: shard 1: {shard.object} " in out
    assert f"kdscale cache repair {url}" in err

    assert run("repair", url) == 0
    out, err = capsys.readouterr()
    assert "withdrew shards 1\n" in out
    assert "shards 1 are to be captured again" in err
    assert "--only cache" in err
    assert committed_shards(cache.store, cache.generation) == {0, 2}


def test_verify_of_a_sample(cache: Planted, capsys: pytest.CaptureFixture[str]) -> None:
    cache.store.delete(load_manifest(cache.store).shards[1].object)
    codes = [
        run("verify", cache.store.url, "--sample", "0.3", "--seed", str(seed)) for seed in range(9)
    ]
    assert set(codes) == {0, 1}
    assert capsys.readouterr().out.count("1 of 3 shards") == 9
    assert run("verify", cache.store.url, "--sample", "2") == 2
    assert "error: The sample 2.0 is no share" in capsys.readouterr().err


def test_repair_says_what_it_restored_and_what_it_cannot(
    cache: Planted, capsys: pytest.CaptureFixture[str]
) -> None:
    (prior,) = cache.store.list("prior/")
    cache.damage(prior, 40)
    assert run("repair", cache.store.url) == 0
    assert f"restored {prior}\n" in capsys.readouterr().out
    cache.damage(prior, 40)
    cache.store.delete(load_manifest(cache.store).shards[2].object)
    assert run("repair", cache.store.url) == 1
    out, err = capsys.readouterr()
    assert f"cannot mend: {prior} " in out
    assert "fix: restore" in err
    assert committed_shards(cache.store, cache.generation) == {0, 1, 2}


def test_gc_tells_and_deletes_what_is_old(
    cache: Planted, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stray = "data/000001-0123456789abcdef.arrow"
    cache.store.put(stray, b"stray")
    two_hours_ago = time.time() - 7200
    os.utime(cache.store.local_path(stray), (two_hours_ago, two_hours_ago))
    url = cache.store.url
    assert run("gc", url) == 0
    assert capsys.readouterr().out == f"{url}: deleted 0 objects, 0 bytes\n"
    for grace in ("1h", "119m", "5000s"):
        assert run("gc", url, "--grace", grace, "--dry-run") == 0
        assert capsys.readouterr().out == (
            f"would delete {stray} (5 bytes)\n{url}: would delete 1 objects, 5 bytes\n"
        )
    assert run("gc", url, "--grace", "1h", "--keep", "1") == 0
    assert f"deleted {stray} (5 bytes)\n" in capsys.readouterr().out
    assert stray not in cache.store.list()
    assert run("verify", url) == 0


@pytest.mark.parametrize(
    "wrong", [("--grace", "1w"), ("--grace", "h"), ("--grace", "-1h"), ("--keep", "0")]
)
def test_gc_refuses_what_it_does_not_understand(
    cache: Planted, wrong: tuple[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("gc", cache.store.url, *wrong) == 2
    assert wrong[0] in capsys.readouterr().err


def test_gc_of_a_capture_that_was_given_up(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    planted = make_planted(open_store(str(tmp_path / "cache")))
    assert planted.writer.commit(*planted.shard(0))
    stray = "data/000001-0123456789abcdef.arrow"
    planted.store.put(stray, b"stray")
    for key in planted.store.list():
        os.utime(planted.store.local_path(key), (0, 0))
    assert run("inspect", planted.store.url) == 2
    assert run("gc", planted.store.url) == 0
    assert "deleted 1 objects, 5 bytes" in capsys.readouterr().out
    for shard in (1, 2):
        assert planted.writer.commit(*planted.shard(shard))


@pytest.mark.parametrize("file_format", ["parquet", "safetensors"])
def test_export(
    cache: Planted, tmp_path: Path, file_format: str, capsys: pytest.CaptureFixture[str]
) -> None:
    out = str(tmp_path / "out")
    assert run("export", cache.store.url, out, "--format", file_format, "--rows", "9") == 0
    assert f"{out}: 9 rows in 2 files\n" in capsys.readouterr().out
    assert sorted(path.name for path in Path(out).iterdir()) == [
        "index.json",
        f"part-000000.{file_format}",
        f"part-000001.{file_format}",
    ]
    assert run("export", cache.store.url, out) == 2
    assert "is not empty" in capsys.readouterr().err


def test_sample_without_its_tokenizer(cache: Planted, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("inspect", cache.store.url, "--sample", "2") == 2
    assert capsys.readouterr().err.startswith("error: ")
