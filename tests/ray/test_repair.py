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

pytestmark = [pytest.mark.ray, pytest.mark.timeout(1200), pytest.mark.usefixtures("shared_ray")]


def attempts(cache: Store) -> dict[str, str]:
    """Return the attempt of each shard's commit."""
    return {key: json.loads(cache.get(key))["attempt"] for key in cache.list("commits/")}


@pytest.mark.slow
def test_bad_shards_alone_are_captured_again(finished_run: FinishedRun, tmp_path: Path) -> None:
    output = tmp_path / "moved"
    shutil.copytree(finished_run.output, output)
    (folder,) = (output / "cache").iterdir()
    cache = open_store(str(folder))
    before, shards = attempts(cache), load_manifest(cache).shards
    content = {key: cache.get(key) for key in (shards[3].object, shards[7].index)}
    damaged = bytearray(content[shards[3].object])
    damaged[len(damaged) // 2] ^= 1
    cache.put(shards[3].object, bytes(damaged))
    cache.delete(shards[7].index)
    cache.delete("commits/000009.json")

    # Of the cache itself; the run is in the folder around it, which is not where it was made.
    code, log = run_kdscale("cache", "repair", cache.url)
    assert code == 0, log[-4000:]
    assert "restored commits/000009.json" in log
    assert "withdrew shards 3, 7" in log
    assert re.search(r"\b2 of 40 shards to capture", log)
    assert "all of them are captured again" in log

    assert verify(cache).bad == []
    assert load_manifest(cache).version == 1
    assert {key: cache.get(key) for key in content} == content
    after = attempts(cache)
    assert {key for key in before if before[key] != after[key]} == {
        f"commits/{shard:06d}.json" for shard in (3, 7, 9)
    }
