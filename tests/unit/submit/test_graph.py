"""Graphs of jobs: what is planned, in which order jobs run, and how a graph continues."""

import itertools
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from kdscale.cli import main
from kdscale.config import parse_config
from kdscale.errors import KdscaleError
from kdscale.submit import JobPlan, plan_graph, submit_graph
from kdscale.submit.graph import Graph, GraphRun, load_graph
from kdscale.submit.job import Job, Status, UnknownJobError
from kdscale.submit.package import CONFIG_PATH

CONFIG = Path(__file__).parents[3] / "jobs" / "configs" / "quickstart.yaml"
STEPS = {"distill": {"training": {"steps": 7}}}


class Jobs:
    """A back end in memory.

    A job ends at the second look at it: SUCCEEDED, or FAILED if its id is in `failing`. While
    `held`, jobs do not end.
    """

    def __init__(self) -> None:
        self.jobs: dict[str, Job] = {}
        self.plans: dict[str, JobPlan] = {}
        self.failing: set[str] = set()
        self.held = False
        self.clock = itertools.count(1)

    def submit(self, plan: JobPlan, folder: Path) -> None:
        assert (folder / CONFIG_PATH).read_text() == plan.config_text
        job = Job(plan.submission_id, "RUNNING", float(next(self.clock)), metadata=plan.metadata)
        self.jobs[job.id], self.plans[job.id] = job, plan

    def details(self, job_id: str) -> Job:
        if job_id not in self.jobs:
            raise UnknownJobError("no such job", "none")
        return self.jobs[job_id]

    def list(self) -> list[Job]:
        seen = [*self.jobs.values()]
        for job in seen:
            if job.status == "RUNNING" and not self.held:
                base = job.id.partition(".")[0]
                status: Status = "FAILED" if base in self.failing else "SUCCEEDED"
                ended = float(next(self.clock))
                self.jobs[job.id] = replace(job, status=status, ended=ended)
        return seen

    def stop(self, job_id: str, grace_seconds: int | None = None) -> bool:
        self.jobs[job_id] = replace(self.jobs[job_id], status="STOPPED")
        return True


@pytest.fixture
def jobs() -> Jobs:
    return Jobs()


@pytest.fixture
def make_graph(tmp_path: Path) -> Callable[..., Graph]:
    def make(overrides: tuple[str, ...] = (), **students: dict[str, Any]) -> Graph:
        files = []
        for name, fields in (students or {"a": STEPS, "b": STEPS}).items():
            path = tmp_path / f"{name}.yaml"
            path.write_text(yaml.safe_dump(fields))
            files.append(str(path))
        return plan_graph(
            str(CONFIG),
            [f"output={tmp_path}/out", *overrides],
            files,
            graph_id="g",
            environment={},
            secret_names=(),
            grace_seconds=60,
        )

    return make


def run_graph(graph: Graph, jobs: Any) -> tuple[bool, list[str]]:
    said: list[str] = []
    return GraphRun(jobs, graph, said.append, poll_seconds=0).run(), said


def test_the_plan(make_graph: Callable[..., Graph], tmp_path: Path) -> None:
    graph = make_graph(
        a={"distill": {"baseline": False}}, b={"distill": {"training": {"steps": 7}}}
    )
    needs = {node.name: node.needs for node in graph.nodes}
    assert needs == {
        "capture": (),
        "a-distill": ("capture",),
        "a-report": ("a-distill",),
        "b-distill": ("capture",),
        "b-report": ("b-distill",),
    }
    first, a, b = (parse_config(graph.nodes[i].config_text) for i in (0, 1, 3))
    assert (first.output, first.base) == (f"{tmp_path}/out", None)
    assert (a.output, a.base) == (f"{tmp_path}/out/students/a", first.output)
    assert not a.distill.baseline
    assert b.distill.training.steps == 7
    for student in (a, b):
        assert student.data == first.data
        assert student.teacher == first.teacher
        assert student.cache == first.cache
    commands = [job["command"].split("config.yaml ")[1] for job in graph.summary()["jobs"]]
    assert commands == ["--until cache", *["--only distill", "--from evaluate"] * 2]
    assert load_graph(graph.driver(1).config_text) == graph


@pytest.mark.parametrize("fields", [{"data": {"seq_len": 32}}, {"seed": 5}, {"name": "x"}])
def test_what_all_students_share_is_refused(
    make_graph: Callable[..., Graph], fields: dict[str, Any]
) -> None:
    with pytest.raises(KdscaleError, match=f"sets {next(iter(fields))}.* but all students share"):
        make_graph(a=fields)


def test_students_need_names_of_their_own(make_graph: Callable[..., Graph]) -> None:
    with pytest.raises(KdscaleError, match="different names"):
        make_graph(capture=STEPS)


def test_every_job_runs_once_after_what_it_needs(
    make_graph: Callable[..., Graph], jobs: Jobs
) -> None:
    succeeded, said = run_graph(make_graph(), jobs)
    assert succeeded
    found = jobs.jobs
    assert set(found) == {"g-capture", "g-a-distill", "g-a-report", "g-b-distill", "g-b-report"}
    for later, earlier in (("a-distill", "capture"), ("a-report", "a-distill")):
        started, ended = found[f"g-{later}"].started, found[f"g-{earlier}"].ended
        assert started is not None
        assert ended is not None
        assert started >= ended
    assert said.index("b-report: going") > said.index("b-distill: done")
    assert jobs.plans["g-a-report"].entrypoint.endswith("--from evaluate")
    # Once more: all is done, nothing is submitted.
    graph = make_graph()
    assert run_graph(graph, jobs) == (True, [f"{node.name}: done" for node in graph.nodes])
    assert len(jobs.jobs) == 5


def test_a_failure_blocks_what_needs_it_and_is_tried_again(
    make_graph: Callable[..., Graph], jobs: Jobs
) -> None:
    jobs.failing.add("g-a-distill")
    succeeded, said = run_graph(make_graph(), jobs)
    assert not succeeded
    assert "a-distill: failed" in said
    assert "a-report: blocked" in said
    assert "b-report: done" in said
    # It fails again: one further attempt, and an end.
    assert not run_graph(make_graph(), jobs)[0]
    jobs.failing.clear()
    assert run_graph(make_graph(), jobs)[0]
    assert {job.id: job.status for job in jobs.list() if "-a-" in job.id} == {
        "g-a-distill": "FAILED",
        "g-a-distill.2": "FAILED",
        "g-a-distill.3": "SUCCEEDED",
        "g-a-report": "SUCCEEDED",
    }


def test_a_graph_that_was_left_finds_its_jobs_again(
    make_graph: Callable[..., Graph], jobs: Any
) -> None:
    jobs.held = True
    assert GraphRun(jobs, make_graph(), lambda _: None).step()["capture"] == "going"
    assert GraphRun(jobs, make_graph(), lambda _: None).step()["capture"] == "going"
    assert len(jobs.jobs) == 1
    jobs.held = False
    assert run_graph(make_graph(), jobs)[0]


def test_stopping_a_graph_stops_its_jobs(make_graph: Callable[..., Graph], jobs: Any) -> None:
    jobs.held = True
    run = GraphRun(jobs, make_graph(), lambda _: None)
    run.step()
    run.stop()
    assert jobs.details("g-capture").status == "STOPPED"


def test_a_graph_is_submitted_once_and_continued(
    make_graph: Callable[..., Graph], jobs: Any
) -> None:
    said: list[str] = []
    plan, found = submit_graph(jobs, make_graph(), said.append)
    assert (plan.submission_id, found) == ("g", None)
    assert plan.entrypoint == f"python jobs/run.py run-graph {CONFIG_PATH}"
    _, found = submit_graph(jobs, make_graph(), said.append)
    assert found is not None
    with pytest.raises(KdscaleError, match="belongs to a job with another config"):
        submit_graph(jobs, make_graph(a={"distill": {"baseline": False}}), said.append)
    jobs.stop("g")
    plan, found = submit_graph(jobs, make_graph(), said.append)
    assert (plan.submission_id, found) == ("g.2", None)
    assert "Continues where g ended." in said


def test_dry_run_prints_the_graph(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "small.yaml").write_text("distill: {baseline: false}\n")
    arguments = ["submit", str(CONFIG), "--student", str(tmp_path / "small.yaml"), "--dry-run"]
    with pytest.raises(SystemExit) as caught:
        main([*arguments, "--json", "--name", "g"])
    assert caught.value.code == 0
    jobs = json.loads(capsys.readouterr().out)["jobs"]
    assert [job["id"] for job in jobs] == ["g-capture", "g-small-distill", "g-small-report"]
