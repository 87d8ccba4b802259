"""Graphs of jobs: what is planned, in which order real jobs run, and how a graph goes on."""

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

import kdscale
from kdscale.cli import main
from kdscale.config import parse_config
from kdscale.errors import KdscaleError
from kdscale.submit import graph_run, plan_graph
from kdscale.submit.graph import Graph, load_graph
from kdscale.submit.graph_run import GraphRun
from kdscale.submit.local_jobs import LocalJobs

CONFIG = Path(__file__).parents[3] / "jobs" / "configs" / "quickstart.yaml"
STEPS = {"distill": {"training": {"steps": 7}}}
# Notes its command line, and fails where a file says so.
PROGRAM = """
import pathlib, sys, time, yaml
name = yaml.safe_load(open(sys.argv[1]))["name"]
print(name, sys.argv[2:], flush=True)
while (pathlib.Path(FOLDER) / "hold").exists(): time.sleep(0.05)
sys.exit(9 if (pathlib.Path(FOLDER) / f"fail{sys.argv[2]}-{name}").exists() else 0)
"""


@pytest.fixture(autouse=True)
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A state folder of its own, and a checkout whose job is PROGRAM."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setenv("PYTHONPATH", str(Path(kdscale.__file__).parents[1]))
    root = tmp_path / "checkout"
    (root / "jobs").mkdir(parents=True)
    (root / "jobs" / "run.py").write_text(PROGRAM.replace("FOLDER", repr(str(tmp_path))))
    (root / "kdscale").symlink_to(Path(kdscale.__file__).parent)
    monkeypatch.setattr(graph_run, "checkout", lambda: root)
    return root


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


def run_graph(graph: Graph) -> tuple[bool, list[str]]:
    said: list[str] = []
    return GraphRun(LocalJobs(), graph, said.append, poll_seconds=0.05).run(), said


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
    assert load_graph(graph.driver("local", 1).config_text) == graph


@pytest.mark.parametrize("fields", [{"data": {"seq_len": 32}}, {"seed": 5}, {"name": "x"}])
def test_what_all_students_share_is_refused(
    make_graph: Callable[..., Graph], fields: dict[str, Any]
) -> None:
    with pytest.raises(KdscaleError, match=f"sets {next(iter(fields))}.* are one for all"):
        make_graph(a=fields)


def test_students_need_names_of_their_own(make_graph: Callable[..., Graph]) -> None:
    with pytest.raises(KdscaleError, match="names of their own"):
        make_graph(capture=STEPS)


def test_every_job_runs_once_after_what_it_needs(make_graph: Callable[..., Graph]) -> None:
    succeeded, said = run_graph(make_graph())
    assert succeeded
    jobs = {job.id: job for job in LocalJobs().list()}
    assert set(jobs) == {"g-capture", "g-a-distill", "g-a-report", "g-b-distill", "g-b-report"}
    for later, earlier in (("a-distill", "capture"), ("a-report", "a-distill")):
        started, ended = jobs[f"g-{later}"].started, jobs[f"g-{earlier}"].ended
        assert started is not None
        assert ended is not None
        assert started >= ended
    assert said.index("b-report: going") > said.index("b-distill: done")
    # Once more: all is done, nothing is submitted.
    assert run_graph(make_graph()) == (True, [f"{node.name}: done" for node in make_graph().nodes])
    assert len(LocalJobs().list()) == 5


def test_a_failure_blocks_what_needs_it_and_is_tried_again(
    make_graph: Callable[..., Graph], tmp_path: Path
) -> None:
    flag = tmp_path / "fail--only-quickstart-a"
    flag.touch()
    succeeded, said = run_graph(make_graph())
    assert not succeeded
    assert "a-distill: failed" in said
    assert "a-report: blocked" in said
    assert "b-report: done" in said
    # It fails again: one further attempt, and an end.
    assert not run_graph(make_graph())[0]
    flag.unlink()
    assert run_graph(make_graph())[0]
    jobs = {job.id: job.status for job in LocalJobs().list() if "-a-" in job.id}
    assert jobs == {
        "g-a-distill": "FAILED",
        "g-a-distill.2": "FAILED",
        "g-a-distill.3": "SUCCEEDED",
        "g-a-report": "SUCCEEDED",
    }


def test_a_graph_that_was_left_finds_its_jobs_again(
    make_graph: Callable[..., Graph], tmp_path: Path
) -> None:
    hold = tmp_path / "hold"
    hold.touch()
    left = GraphRun(LocalJobs(), make_graph(), lambda _: None)
    assert left.step()["capture"] == "going"
    found = GraphRun(LocalJobs(), make_graph(), lambda _: None)
    assert found.step()["capture"] == "going"
    assert len(LocalJobs().list()) == 1
    hold.unlink()
    assert run_graph(make_graph())[0]


def test_stopping_a_graph_stops_its_jobs(make_graph: Callable[..., Graph], tmp_path: Path) -> None:
    (tmp_path / "hold").touch()
    run = GraphRun(LocalJobs(), make_graph(), lambda _: None)
    run.step()
    deadline = time.monotonic() + 60
    while "quickstart" not in LocalJobs().log("g-capture"):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    run.stop()
    while not (job := LocalJobs().details("g-capture")).is_over:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert job.status == "STOPPED"


def test_dry_run_prints_the_graph(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "small.yaml").write_text("distill: {baseline: false}\n")
    arguments = ["submit", str(CONFIG), "--student", str(tmp_path / "small.yaml"), "--dry-run"]
    with pytest.raises(SystemExit) as caught:
        main([*arguments, "--json", "--name", "g"])
    assert caught.value.code == 0
    jobs = json.loads(capsys.readouterr().out)["jobs"]
    assert [job["id"] for job in jobs] == ["g-capture", "g-small-distill", "g-small-report"]
    assert LocalJobs().list() == []
