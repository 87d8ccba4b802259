"""Doctor, Prometheus and status on real nodes and a real run on them."""

import json
import os
import re
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import pytest
import ray
from ray.cluster_utils import Cluster

from kdscale.config import dump_config
from kdscale.config.training import WorkersConfig
from kdscale.run.progress_file import ProgressFile
from kdscale.run.record import RunRecord
from kdscale.run.status import RunStatus, StageStatus, run_status
from kdscale.store import Store, open_store
from kdscale.teacher.capture import CaptureJob
from kdscale.tracking.metrics import TABLE
from kdscale.workers.group import run_workers
from kdscale.workers.progress import stage_progress
from tests.runs import FinishedRun, kdscale, run_kdscale, run_program
from tests.s3 import S3Server
from tests.unit.teacher.test_capture import CAPTURED, make_subject

pytestmark = [pytest.mark.ray, pytest.mark.timeout(900)]

PATIENCE_SECONDS = 500
# name{labels} value
SERIES = re.compile(r"^ray_(kdscale_\w+)\{(.*)\} (\S+)$", re.M)


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """Start two nodes of one CPU each on this machine."""
    # The nodes must find this package where this process does.
    paths = [str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join(filter(None, paths)))
        made = Cluster(
            initialize_head=True,
            head_node_args={
                "num_cpus": 1,
                "include_dashboard": False,
                "_system_config": {"metrics_report_interval_ms": 500},
            },
        )
        made.add_node(num_cpus=1)
        ray.init(address=made.address, log_to_driver=False, logging_level="ERROR")
        yield made
        ray.shutdown()
        made.shutdown()


def doctor(*arguments: str, env: dict[str, str]) -> tuple[int, dict[str, dict[str, str]]]:
    """Run `kdscale doctor` and return (exit code, findings by name)."""
    code, text = run_program("doctor", "--json", *arguments, env=env)
    found = json.loads(text.splitlines()[-1])
    return code, {check["name"]: check for check in found["checks"]}


@pytest.mark.s3
def test_doctor_finds_nothing_wrong(cluster: Cluster, s3_env: S3Server) -> None:
    url = f"{s3_env.url}/doctor"
    code, found = doctor("--output", url, "--cluster", cluster.address, env=s3_env.env)
    bad = [check for check in found.values() if check["word"] == "failed"]
    assert (code, bad) == (0, [])
    assert found["cluster"]["value"].startswith("2 nodes at ")
    assert len([name for name in found if name.startswith("node ")]) == 2
    (network,) = (name for name in found if name.startswith("gloo "))
    assert "all-reduce at" in found[network]["value"]
    assert found["conditional put"]["value"] == "one winner of 16 in each of 4 rounds"
    assert found["store clock"]["word"] == "ok"
    assert "MB/s out" in found["store speed"]["value"]
    assert [key for key in open_store(url).list() if "store-probe" in key] == []


@pytest.mark.slow
def test_doctor_names_a_node_that_is_other_and_cut_off(
    cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Ray puts the driver's folder before all else: not one that has a kdscale of its own.
    folder = tmp_path / "empty"
    folder.mkdir()
    monkeypatch.chdir(folder)
    metadata = tmp_path / "kdscale-9.9.9.dist-info" / "METADATA"
    metadata.parent.mkdir()
    metadata.write_text("Metadata-Version: 2.1\nName: kdscale\nVersion: 9.9.9\n")
    path = os.pathsep.join([str(tmp_path), os.environ["PYTHONPATH"]])
    # gloo listens on an interface that is not there, as on one that nobody reaches.
    wrong = {"PYTHONPATH": path, "GLOO_SOCKET_IFNAME": "none0"}
    node = cluster.add_node(num_cpus=1, env_vars=wrong)
    try:
        code, found = doctor("--cluster", cluster.address, env={})
        name = node.node_id[:6]
    finally:
        cluster.remove_node(node)
    assert code == 1
    failed = {each: check for each, check in found.items() if check["word"] == "failed"}
    (version,) = (check for each, check in failed.items() if each.startswith("node "))
    assert name in version["name"]
    assert "kdscale 9.9.9 (here " in version["value"]
    pairs = [check for each, check in failed.items() if each.startswith("gloo ")]
    assert len(pairs) == 2
    for check in pairs:
        assert name in check["name"]
        assert "none0" in check["value"]
        assert "GLOO_SOCKET_IFNAME" in check["fix"]


Series = dict[str, list[tuple[dict[str, str], float]]]
"""Labels and values by name, without Ray's prefix."""


def scrape() -> Series:
    """Return the series of all nodes by name, as a Prometheus server would read them."""
    found: Series = {}
    for node in ray.nodes():
        where = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}"
        text = urlopen(where, timeout=10).read().decode() if node["Alive"] else ""
        for name, labels, value in SERIES.findall(text):
            tags = dict(re.findall(r'(\w+)="([^"]*)"', labels))
            found.setdefault(name, []).append((tags, float(value)))
    return found


def of(found: Series, name: str, **tags: str) -> list[float]:
    """Return the values of a metric's series that have these tags."""
    return [v for t, v in found.get(name, []) if tags.items() <= t.items()]


@dataclass(frozen=True)
class WaitingCapture:
    """A real capture, whose workers stay until the test has looked at them."""

    job: CaptureJob

    def run(self) -> None:
        self.job.run()
        output, deadline = self.job.output, time.monotonic() + PATIENCE_SECONDS
        while not output.exists("seen"):
            assert time.monotonic() < deadline
            time.sleep(0.1)


def look(output: Store) -> tuple[Series, RunStatus]:
    """Return the view of Prometheus and status once both workers have committed; end the stage."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    try:
        while True:
            seen, status = scrape(), run_status(output)
            ranks = {tags["rank"] for tags, _ in seen.get("kdscale_shards_committed_total", [])}
            # The progress follows the workers by a beat.
            if ranks == {"0", "1"} and status.stages[2].done == CAPTURED:
                return seen, status
            assert time.monotonic() < deadline, (seen, status)
            time.sleep(0.5)
    finally:
        output.put("seen", b"")


@pytest.mark.slow
def test_a_stage_is_seen_by_prometheus_and_from_its_store(cluster: Cluster, tmp_path: Path) -> None:
    job = make_subject(tmp_path).job
    output = job.output
    output.put("config.resolved.yaml", dump_config(job.config).encode())
    record = RunRecord(output, "tiny", "f")
    with (
        ThreadPoolExecutor(1) as pool,
        ProgressFile(output, seconds=0.2) as progress_file,
        record.running("cache", "x"),
        stage_progress("cache", run="tiny") as progress,
    ):
        progress_file.begin(progress, "x")
        looked = pool.submit(look, output)
        run_workers(WaitingCapture(job), WorkersConfig(count=2), progress)
        seen, status = looked.result()

    tags = {"run": "tiny", "stage": "cache"}
    assert {name.removesuffix("_total") for name in seen} <= {metric.exported for metric in TABLE}
    assert sum(of(seen, "kdscale_shards_committed_total", **tags)) == 4
    assert min(of(seen, "kdscale_bytes_committed_total", **tags)) > 1000
    assert of(seen, "kdscale_attempt", **tags) == [0, 0]
    first = {"rank": "0", "part": "rows", **tags}
    assert of(seen, "kdscale_planned", **first) == [CAPTURED]
    assert of(seen, "kdscale_done", **first) == [CAPTURED]
    assert of(seen, "kdscale_tokens_total", **first) == [CAPTURED * 16]
    assert of(seen, "kdscale_tokens_per_second", **first)[0] > 0

    cache = status.stages[2]
    assert (status.state, cache.state, status.driver.pid) == ("running", "running", os.getpid())
    assert (cache.shards_committed, cache.shards_planned) == (4, 4)
    assert (cache.done, cache.total, cache.note) == (CAPTURED, CAPTURED, "rows")
    assert run_status(output).stages[2].state == "complete"


class Watched:
    """Run on the cluster that starts at the cache, with a finished run's teacher."""

    def __init__(self, finished: FinishedRun, cluster: Cluster, output: Path) -> None:
        self.store: Store = open_store(str(output))
        source = open_store(str(finished.output))
        for key in source.list():
            if key.startswith(("prepared/", "teacher/", "run.json")):
                self.store.put(key, source.get(key))
        changes = (f"output={output}", f"distill.cache_folder={output}-chunks")
        self.process = kdscale(
            "run",
            str(finished.config),
            *(part for change in changes for part in ("--set", change)),
            env={"RAY_ADDRESS": cluster.address},
        )

    def wait_for(self, ready: Callable[[], Any]) -> Any:
        """Wait for a true result of `ready` and return it."""
        deadline = time.monotonic() + PATIENCE_SECONDS
        while not (found := ready()):
            assert self.process.poll() is None, self.process.stdout.read()[-4000:]
            assert time.monotonic() < deadline
            time.sleep(0.1)
        return found

    def status(self) -> RunStatus:
        return run_status(self.store)

    def stage(self, name: str) -> StageStatus:
        return next(stage for stage in self.status().stages if stage.name == name)


@pytest.fixture(scope="module")
def watched(
    finished_run: FinishedRun, cluster: Cluster, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Watched]:
    run = Watched(finished_run, cluster, tmp_path_factory.mktemp("watched") / "output")
    yield run
    run.process.kill()
    run.process.wait()


@pytest.mark.slow
def test_a_run_is_seen_from_its_store_and_by_prometheus(watched: Watched) -> None:
    found = watched.wait_for(lambda: watched.stage("cache").shards_committed and watched.status())
    assert found.state == "running"
    assert found.driver.pid == watched.process.pid
    assert [stage.state for stage in found.stages[:3]] == ["complete", "complete", "running"]

    def captured() -> Series | None:
        seen = scrape()
        both = {t["rank"] for t, _ in seen.get("kdscale_shards_committed_total", [])}
        # A process gives its metrics out now and then: not all of them have to come at once.
        planned = of(seen, "kdscale_planned", part="rows", **tags)
        return seen if both == {"0", "1"} and planned else None

    tags = {"run": "tiny", "stage": "cache"}
    seen = watched.wait_for(captured)
    assert max(of(seen, "kdscale_shards_committed_total", **tags)) >= 1
    assert max(of(seen, "kdscale_bytes_committed_total", rank="0", **tags)) > 1000
    assert of(seen, "kdscale_planned", part="rows", **tags) == [640]
    assert of(seen, "kdscale_attempt", **tags) == [0, 0]
    assert 0 < max(of(seen, "kdscale_done", part="rows", **tags)) <= 640


@pytest.mark.slow
def test_the_student_is_seen_too(watched: Watched) -> None:
    def training() -> Series | None:
        seen = scrape()
        wanted = {"kdscale_cache_hit_share", "kdscale_tokens_total", "kdscale_loss"}
        return seen if wanted <= seen.keys() else None

    seen = watched.wait_for(training)
    tags = {"run": "tiny", "stage": "distill", "rank": "0", "part": "student"}
    assert 0 < of(seen, "kdscale_done", **tags)[0] <= 120
    assert of(seen, "kdscale_planned", **tags) == [120]
    assert of(seen, "kdscale_tokens_total", **tags)[0] > 0
    assert 0 < of(seen, "kdscale_loss", **tags)[0] < 10
    assert 0 <= of(seen, "kdscale_data_wait_share", **tags)[0] <= 1
    assert 0 <= of(seen, "kdscale_cache_hit_share", **tags)[0] <= 1
    assert {name.removesuffix("_total") for name in seen} <= {metric.exported for metric in TABLE}

    found = watched.wait_for(lambda: watched.stage("distill").done and watched.status())
    cache, distill = found.stages[2:4]
    assert (cache.state, cache.shards_committed, cache.shards_planned) == ("complete", 40, 40)
    # Whichever it is at by then.
    assert distill.note in ("student", "baseline")
    assert distill.total == 120
    assert 0 < distill.losses[0].values["train/loss"] < 10


@pytest.mark.slow
def test_a_killed_driver_is_lost_and_its_successor_says_so(watched: Watched) -> None:
    watched.process.kill()
    watched.process.wait()
    heard = watched.status().driver.heard
    found = run_status(watched.store, heard + 61)
    assert (found.state, found.stages[3].state) == ("lost", "lost")
    code, text = run_kdscale("status", str(watched.store), "--json")
    assert json.loads(text)["stages"][2]["shards_committed"] == 40
    assert code in (0, 1), "a minute may be over or not"
