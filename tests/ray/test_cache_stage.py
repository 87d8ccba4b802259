"""The cache stage beyond one capture: generations, and several caches read as one."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from kdscale.cache.commit.manifest import load_manifest
from kdscale.cache.maintain.verify import verify
from kdscale.cache.read.reader import CacheReader
from kdscale.store import open_store
from tests.runs import FinishedRun, read_metrics, run_kdscale, tiny_config, write_config

pytestmark = [pytest.mark.ray, pytest.mark.timeout(900), pytest.mark.usefixtures("shared_ray")]


@pytest.fixture(scope="module")
def appended(finished_run: FinishedRun, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Copy the finished run and append the rows of a larger selection to its cache."""
    output = tmp_path_factory.mktemp("append") / "output"
    shutil.copytree(finished_run.output, output)
    config = larger(finished_run, output)
    code, log = run_kdscale("run", str(config), "--only", "cache")
    assert code == 0, log[-4000:]
    code, log = run_kdscale("run", str(config), "--only", "cache")
    assert code == 0
    assert "cache: complete, skipped" in log
    return output


def cache_of(output: Path) -> Path:
    (folder,) = (output / "cache").iterdir()
    return folder


def larger(run: FinishedRun, output: Path) -> Path:
    cache = {"cache__sequences": 700, "cache__append_to": str(cache_of(output))}
    config = tiny_config(run.corpus, str(output), **cache)
    return write_config(output.parent / "larger.yaml", config)


def test_append_captures_what_is_lacking_and_nothing_twice(
    finished_run: FinishedRun, appended: Path
) -> None:
    store = open_store(str(cache_of(appended)))
    old = CacheReader(store, generations=1)
    new = CacheReader(store)
    assert (len(old), new.manifest.version, len(new.manifest.generations)) == (640, 2, 2)
    ids = [row.tobytes() for row in new.statistics.sample_ids]
    assert len(set(ids)) == len(ids) == len(new)
    assert 640 < len(new) <= 640 + 700
    assert verify(store).bad == []
    before = CacheReader(open_store(str(cache_of(finished_run.output)))).read(np.arange(640))
    assert np.array_equal(new.read(np.arange(640)).payload, before.payload)


def test_append_to_a_cache_of_another_teacher_is_refused(
    finished_run: FinishedRun, tmp_path: Path
) -> None:
    output = tmp_path / "output"
    shutil.copytree(finished_run.output, output)
    plan = cache_of(output) / "plans" / "0000.json"
    content = json.loads(plan.read_text())
    content["identity"]["teacher"] = "another"
    del content["checksum"]
    plan.write_text(json.dumps(content))
    code, log = run_kdscale("run", str(larger(finished_run, output)), "--only", "cache")
    assert code == 2
    assert 'teacher: the cache has "another"' in log


@pytest.mark.slow
def test_student_of_two_caches_meets_rows_by_their_weights(
    finished_run: FinishedRun, appended: Path
) -> None:
    first, second = cache_of(finished_run.output), cache_of(appended)
    config = tiny_config(
        finished_run.corpus,
        str(appended),
        cache__reuse=[{"url": str(first), "weight": 0.5}, {"url": str(second), "weight": 2}],
        distill__training={
            "steps": 8,
            "global_batch_size": 8,
            "micro_batch_size": 4,
            "log_every": 1,
        },
        distill__baseline=False,
    )
    path = write_config(appended.parent / "mixed.yaml", config)
    code, log = run_kdscale("run", str(path), "--from", "cache", "--overwrite")
    assert code == 0, log[-4000:]
    lines = read_metrics((appended / "metrics" / "distill.jsonl").read_bytes())
    assert [line["step"] for line in lines] == list(range(1, 9))
    rows = 320 + 2 * load_manifest(open_store(str(second))).rows
    assert lines[-1]["curriculum/pool_size"] == rows
    pinned = json.loads((appended / "run.json").read_text())["pinned"]["cache_generations"]
    assert pinned["value"] == [1, 2]
