"""`kdscale cache repair` on a run captures damaged shards again, and no others."""

import json
import re
import shutil
from pathlib import Path

import pytest

from kdscale.cache.commit.manifest import load_manifest
from kdscale.cache.maintain.verify import verify
from kdscale.store import Store, open_store
from tests.runs import FinishedRun, run_kdscale

pytestmark = [pytest.mark.ray, pytest.mark.timeout(1200)]


def attempts(cache: Store) -> dict[str, str]:
    """Return the attempt of each shard's commit."""
    return {key: json.loads(cache.get(key))["attempt"] for key in cache.list("commits/")}


@pytest.mark.slow
def test_bad_units_alone_are_captured_again(finished_run: FinishedRun, tmp_path: Path) -> None:
    output = tmp_path / "moved"
    shutil.copytree(finished_run.output, output)
    (folder,) = (output / "cache").iterdir()
    cache = open_store(str(folder))
    before, units = attempts(cache), load_manifest(cache).units
    content = {key: cache.get(key) for key in (units[3].object, units[7].index)}
    damaged = bytearray(content[units[3].object])
    damaged[len(damaged) // 2] ^= 1
    cache.put(units[3].object, bytes(damaged))
    cache.delete(units[7].index)
    cache.delete("commits/000009.json")

    # Of the cache itself; the run is in the folder around it, which is not where it was made.
    code, log = run_kdscale("cache", "repair", cache.url)
    assert code == 0, log[-4000:]
    assert "mended commits/000009.json" in log
    assert "withdrew units 3, 7" in log
    assert re.search(r"\b2 of 40 units to capture", log)
    assert "all of them are captured again" in log

    assert verify(cache).bad == []
    assert load_manifest(cache).version == 1
    assert {key: cache.get(key) for key in content} == content
    after = attempts(cache)
    assert {key for key in before if before[key] != after[key]} == {
        f"commits/{unit:06d}.json" for unit in (3, 7, 9)
    }
