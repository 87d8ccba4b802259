"""Kill -9 of real workers and drivers in a run on a real S3 server, against an undisturbed run."""

import json
import re
from pathlib import Path

import pytest

from kdscale.cache.maintain.verify import verify
from kdscale.run.status import run_status
from kdscale.store import Store, open_store
from tests.environment import environment
from tests.runs import FinishedRun, read_metrics, run_kdscale, tiny_config, write_config
from tests.s3 import S3Server
from tests.watched import Watched


@pytest.fixture(scope="module")
def disturbed(
    finished_run: FinishedRun, s3_server: S3Server, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Watched, str]:
    """Return the run of `finished_run` on S3, disturbed and completed.

    A worker of each kind and the driver are killed in the middle, and the run is asked to stop as
    the capture resumes.
    """
    url = f"{s3_server.url}/disturbed"
    config = tiny_config(finished_run.corpus, url)
    path = write_config(tmp_path_factory.mktemp("disturbed") / "tiny.yaml", config)
    run = Watched("run", str(path), env=s3_server.env)
    with environment(**s3_server.env):
        store = open_store(url)

        def committed() -> int:
            return sum("/commits/" in key for key in store.list("cache/"))

        run.wait_for(lambda: committed() >= 3, "capture of some shards")
        run.kill_worker(1, "teacher holds")
        before_the_kill = committed()
        assert before_the_kill < 40
        run.wait_for(lambda: committed() > before_the_kill, "further shards")
        run.lose_driver()

        # Asked while the workers start, they learn it with their first heartbeat.
        run.wait_for(lambda: run.log.count("cache: started") == 2, "the capture again")
        run.stop(store, "cache")

        def checkpointed(step: int) -> bool:
            keys = store.list("checkpoints/student")
            done = [key.split("/")[-2] for key in keys if key.endswith("complete.json")]
            return any(int(name.removeprefix("step-")) >= step for name in done)

        run.wait_for(lambda: checkpointed(10), "a student's checkpoint")
        run.kill_worker(0, "student")
        code = run.finish()
    assert code == 0, run.log[-6000:]
    return run, url


@pytest.fixture
def store(disturbed: tuple[Watched, str], s3_env: S3Server) -> Store:
    return open_store(disturbed[1])


pytestmark = [
    *(pytest.mark.fault, pytest.mark.ray, pytest.mark.s3),
    *(pytest.mark.slow, pytest.mark.timeout(1500)),
]


def test_the_workers_were_really_started_again(disturbed: tuple[Watched, str]) -> None:
    log = disturbed[0].log
    missing = [int(n) for n in re.findall(r"rank 0 of 2 .*: (\d+) of 40 shards to capture", log)]
    assert missing[0] == 40
    assert missing == sorted(missing, reverse=True)
    assert len(missing) >= 2
    resumed = [int(n) for n in re.findall(r"student: .* resumed at step (\d+) of 120", log)]
    assert resumed
    assert 0 < resumed[-1] < 120


def test_the_driver_was_really_submitted_again(disturbed: tuple[Watched, str]) -> None:
    log = disturbed[0].log
    assert len(re.findall(r"run tiny on data", log)) == 3
    assert log.count("prepare: complete, skipped") == 2
    assert log.count("teacher: complete, skipped") == 2


def test_the_run_stopped_when_it_was_asked_to(disturbed: tuple[Watched, str]) -> None:
    # At once, where it had nothing to save yet.
    ended = "has stopped as asked|was ended at once"
    assert re.search(f"error: The run ({ended}) by the request", disturbed[0].log)


def test_the_cache_holds_each_shard_once_and_verifies(store: Store) -> None:
    (name,) = {key.split("/")[1] for key in store.list("cache/")}
    cache = store.child(f"cache/{name}")
    commits = cache.list("commits/")
    assert commits == [f"commits/{shard:06d}.json" for shard in range(40)]
    report = verify(cache)
    assert report.bad == []
    assert report.chunks == 80
    named = {json.loads(cache.get(key))["digest"] for key in commits}
    assert len(named) == 40


def test_cached_bytes_equal_those_of_the_undisturbed_run(
    store: Store, finished_run: FinishedRun
) -> None:
    (name,) = {key.split("/")[1] for key in store.list("cache/")}
    there = store.child(f"cache/{name}")
    here = open_store(str(finished_run.output / "cache" / name))
    for shard in (0, 3, 20, 39):
        key = f"commits/{shard:06d}.json"
        mine, theirs = (json.loads(s.get(key)) for s in (there, here))
        assert mine["digest"] == theirs["digest"]


@pytest.mark.parametrize("name", ["teacher", "distill", "baseline"])
def test_losses_equal_those_of_the_undisturbed_run(
    store: Store, finished_run: FinishedRun, name: str
) -> None:
    disturbed = read_metrics(store.get(f"metrics/{name}.jsonl"))
    undisturbed = read_metrics((finished_run.output / f"metrics/{name}.jsonl").read_bytes())
    assert [line["step"] for line in disturbed] == [line["step"] for line in undisturbed]
    for mine, theirs in zip(disturbed, undisturbed, strict=True):
        for key in ("train/loss", "train/ce_loss", "train/kl", "validation/loss", "tokens"):
            assert mine.get(key) == theirs.get(key), (mine["step"], key)


def test_results_on_s3_equal_those_on_disk(store: Store, finished_run: FinishedRun) -> None:
    mine = json.loads(store.get("results.json"))
    theirs = json.loads((finished_run.output / "results.json").read_text())
    assert mine["models"] == theirs["models"]
    assert mine["gap_recovered"] == theirs["gap_recovered"]


def test_the_store_tells_what_failed_and_that_nothing_is_missing(store: Store) -> None:
    found = run_status(store)
    stages = {stage.name: stage for stage in found.stages}
    assert found.state == "complete"
    # The capture's driver was killed before it could tell of its lost worker.
    assert stages["distill"].failed_groups >= 1
    assert "rank" in stages["distill"].failures[0].reason
    for name in ("cache", "distill"):
        assert stages[name].done == stages[name].total
    assert stages["teacher"].failures == ()
    assert (stages["cache"].shards_committed, stages["cache"].shards_planned) == (40, 40)


def test_a_second_run_on_s3_skips_every_stage(
    disturbed: tuple[Watched, str], finished_run: FinishedRun, s3_env: S3Server, tmp_path: Path
) -> None:
    config = tiny_config(finished_run.corpus, disturbed[1])
    code, log = run_kdscale("run", str(write_config(tmp_path / "c.yaml", config)), env=s3_env.env)
    assert code == 0, log
    assert log.count("complete, skipped") == 6


def test_an_unreachable_bucket_ends_in_a_clear_error(
    finished_run: FinishedRun, s3_env: S3Server, tmp_path: Path
) -> None:
    config = tiny_config(finished_run.corpus, "s3://no-such-bucket/run")
    code, log = run_kdscale("run", str(write_config(tmp_path / "c.yaml", config)), env=s3_env.env)
    assert code == 2
    assert "no-such-bucket" in log
    assert "fix:" in log
    assert s3_env.env["AWS_SECRET_ACCESS_KEY"] not in log
