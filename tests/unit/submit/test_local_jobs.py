"""Jobs of this machine: real processes, started, followed, stopped and lost."""

import json
import os
import secrets
import signal
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest

import kdscale
from kdscale.submit import Job, JobPlan, exit_code, follow, submit_once
from kdscale.submit import job_plan as plan
from kdscale.submit.exit_codes import DuplicateJobError, UnknownJobError
from kdscale.submit.local_jobs import LocalJobs, jobs_folder

WAIT = """
import signal
try:
    print("ready", flush=True)
    while True:
        signal.pause()
except KeyboardInterrupt:
    print("wound down", flush=True)
"""
STUBBORN = """
import signal, time
signal.signal(signal.SIGINT, signal.SIG_IGN)
print("ready", flush=True)
while True:
    time.sleep(1)
"""


@pytest.fixture(autouse=True)
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))


@pytest.fixture
def start(tmp_path: Path) -> Callable[..., str]:
    """Submits a job whose program is the text given."""

    def submit(program: str, name: str | None = None, **fields: object) -> str:
        name = name or f"job-{secrets.token_hex(4)}"
        folder = tmp_path / f"staged-{secrets.token_hex(4)}"
        (folder / "jobs").mkdir(parents=True)
        (folder / "jobs" / "run.py").write_text(program)
        LocalJobs().submit(make_plan(name, **fields), folder)
        return name

    return submit


def make_plan(name: str, **fields: object) -> JobPlan:
    # The runner is this checkout's, whatever the staged files are.
    path = str(Path(kdscale.__file__).parents[1])
    given = {
        "environment": {**plan.ENVIRONMENT, "PYTHONPATH": path},
        "metadata": {"job_name": "test", "digest": "1"},
        **fields,
    }
    return JobPlan(
        submission_id=name,
        entrypoint="python jobs/run.py job/config.yaml",
        config_text="",
        places=(),
        **given,
    )


def ended(name: str, write: Callable[[str], None] | None = None) -> Job:
    return follow(LocalJobs(), name, write, poll_seconds=0.05, timeout_seconds=60)


def wait_for(name: str, text: str) -> None:
    deadline = time.monotonic() + 60
    while text not in LocalJobs().log(name):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_success(start: Callable[..., str]) -> None:
    written: list[str] = []
    name = start(
        "import sys, os; print(sys.argv[1:], os.getcwd(), os.environ['A'])",
        environment={**plan.ENVIRONMENT, "A": "b"},
    )
    job = ended(name, written.append)
    assert exit_code(job) == 0
    assert job.started is not None
    assert job.ended is not None
    assert job.started <= job.ended
    assert job.metadata["job_name"] == "test"
    text = "".join(written)
    assert text == LocalJobs().log(name)
    assert text == f"['job/config.yaml'] {jobs_folder() / name / 'code'} b\n"


@pytest.mark.parametrize(("ending", "code"), [("raise SystemExit(41)", 41), ("1/0", 1)])
def test_failure(start: Callable[..., str], ending: str, code: int) -> None:
    job = ended(start(f"print('last words', flush=True); {ending}"))
    assert job.status == "FAILED"
    assert exit_code(job) == code
    assert "last words" in job.message


def test_stop_winds_down(start: Callable[..., str]) -> None:
    name = start(WAIT)
    wait_for(name, "ready")
    assert LocalJobs().details(name).status == "RUNNING"
    assert LocalJobs().stop(name)
    job = ended(name)
    # It ended well, as it was asked to: nobody stopped it halfway.
    assert job.status == "SUCCEEDED"
    assert LocalJobs().log(name) == "ready\nwound down\n"
    assert not LocalJobs().stop(name)


def test_who_does_not_leave_in_time_is_killed(start: Callable[..., str]) -> None:
    name = start(STUBBORN)
    wait_for(name, "ready")
    assert LocalJobs().stop(name, grace_seconds=1)
    job = ended(name)
    assert job.status == "STOPPED"
    assert exit_code(job) == 5
    assert job.exit_code == -signal.SIGKILL


def test_a_killed_runner_is_a_failed_job_and_takes_the_job_along(
    start: Callable[..., str],
) -> None:
    name = start(f"import os; print(os.getppid(), os.getpid(), flush=True)\n{WAIT}")
    wait_for(name, "ready")
    runner, job = map(int, LocalJobs().log(name).split()[:2])
    os.kill(runner, signal.SIGKILL)
    end = ended(name)
    assert exit_code(end) == 1
    assert "gone without a verdict" in end.reason
    deadline = time.monotonic() + 60
    while psutil.pid_exists(job) and psutil.Process(job).status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    # Whatever process has these numbers by now, it gets no signal.
    assert not LocalJobs().stop(name)


def test_an_id_is_used_once_by_however_many(start: Callable[..., str]) -> None:
    def attempt(number: int) -> bool:
        try:
            start("print('once')", name="same")
        except DuplicateJobError:
            return False
        return True

    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(attempt, range(8))) == 1
    assert ended("same").status == "SUCCEEDED"
    assert LocalJobs().log("same") == "once\n"
    assert [job.id for job in LocalJobs().list()] == ["same"]


@pytest.mark.slow
def test_two_hundred_jobs_and_none_is_lost(start: Callable[..., str]) -> None:
    names = [f"load-{number:03}" for number in range(200)]
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(lambda name: start(WAIT, name=name), names)) == names
        assert sorted(job.id for job in LocalJobs().list()) == names
        # Python loses an interrupt that meets a callback of its start; such a job is killed then.
        assert all(pool.map(lambda name: LocalJobs().stop(name, grace_seconds=20), names))
        jobs = list(pool.map(ended, names))
    # Those asked before their program began were ended by the signal itself.
    assert {job.status for job in jobs} <= {"SUCCEEDED", "STOPPED"}


def test_a_repeated_submission_is_found(start: Callable[..., str], tmp_path: Path) -> None:
    start("print('once')", name="same")
    found = submit_once(LocalJobs(), make_plan("same"), tmp_path)
    assert found is not None
    assert found.id == "same"


def test_a_secret_is_in_no_file(
    start: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    value = secrets.token_hex(20)
    monkeypatch.setenv("HF_TOKEN", value)
    name = start("import os; print(len(os.environ['HF_TOKEN']))", secrets=("HF_TOKEN",))
    assert ended(name).status == "SUCCEEDED"
    assert LocalJobs().log(name) == "40\n"
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert json.loads((jobs_folder() / name / "job.json").read_text())
    assert [path for path in files if value.encode() in path.read_bytes()] == []


@pytest.mark.parametrize("call", ["details", "log", "stop"])
def test_unknown_job(call: str) -> None:
    with pytest.raises(UnknownJobError, match="no job 'nobody'"):
        getattr(LocalJobs(), call)("nobody")
    assert LocalJobs().list() == []
