"""Submitting to a real Ray with token authentication: success, failure, stop, refusal, detach."""

import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

import kdscale.submit as room
from kdscale.cli import main
from kdscale.submit.plan import JobPlan
from kdscale.submit.verdict import UnreachableError
from tests.runs import tiny_config, write_config, write_corpus

pytestmark = [pytest.mark.ray, pytest.mark.timeout(300)]

QUICKSTART = Path(__file__).parents[2] / "jobs" / "configs" / "quickstart.yaml"
START_SECONDS = 120

SUCCEED = """
import sys, kdscale
print("code:", kdscale.WHERE, "arguments:", sys.argv[1:])
print("config:", open(sys.argv[1]).read().splitlines()[0])
"""
WAIT = """
import signal, time
try:
    print("ready")
    while True:
        signal.pause()
except KeyboardInterrupt:
    print("wound down")
    raise SystemExit(130)
"""


def free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    for item in sockets:
        item.bind(("127.0.0.1", 0))
    ports = [item.getsockname()[1] for item in sockets]
    for item in sockets:
        item.close()
    return ports


@pytest.fixture(scope="module")
def token() -> str:
    return secrets.token_hex(16)


@pytest.fixture(scope="module")
def address(token: str) -> Iterator[str]:
    """The dashboard of a head with two CPUs, started here and ended by its process id."""
    # Short, because the path of a UNIX socket has at most 107 characters.
    folder = Path(tempfile.mkdtemp(prefix="kr"))
    port, dashboard, agent, client, metrics = free_ports(5)
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    environment |= {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": token,
        # Jobs run `python`: the one of this environment.
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
    }
    command = [sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block"]
    command += ["--num-cpus", "2", "--disable-usage-stats", "--temp-dir", str(folder / "r")]
    command += ["--port", str(port), "--dashboard-port", str(dashboard)]
    command += ["--dashboard-agent-listen-port", str(agent), "--metrics-export-port", str(metrics)]
    command += ["--ray-client-server-port", str(client)]
    command += ["--min-worker-port", "0", "--max-worker-port", "0"]
    with (folder / "head.log").open("wb") as log:
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
    try:
        url = f"http://127.0.0.1:{dashboard}"
        _wait_for(url, token, process, folder / "head.log")
        yield url
    finally:
        _kill_with_children(process)
        process.wait(60)
        shutil.rmtree(folder, ignore_errors=True)


def _kill_with_children(process: subprocess.Popen[bytes]) -> None:
    """At once: asked to end, `ray start` waits for its processes for half a minute."""
    children: list[psutil.Process] = []
    with suppress(psutil.NoSuchProcess):
        children = psutil.Process(process.pid).children(recursive=True)
    process.kill()
    for child in children:
        # Many end by themselves when another of them is gone.
        with suppress(psutil.NoSuchProcess):
            child.kill()


def _wait_for(url: str, token: str, process: subprocess.Popen[bytes], log: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_AUTH_TOKEN", token)
        deadline = time.monotonic() + START_SECONDS
        while True:
            try:
                room.connect(url)
            except UnreachableError:
                dead = process.poll() is not None or time.monotonic() > deadline
                assert not dead, log.read_text(errors="replace")[-2000:]
                time.sleep(0.5)
            else:
                return


@pytest.fixture(autouse=True)
def client_environment(monkeypatch: pytest.MonkeyPatch, token: str, tmp_path: Path) -> None:
    for name in ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS", "RAY_AUTH_MODE", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("RAY_AUTH_TOKEN", token)
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def checkout_with(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[str], Path]:
    """Makes a checkout whose job script is the text given, and has `kdscale submit` use it."""

    def make(script: str) -> Path:
        root = tmp_path / "checkout"
        (root / "jobs").mkdir(parents=True)
        (root / "jobs" / "run.py").write_text(script)
        (root / "kdscale").mkdir()
        (root / "kdscale" / "__init__.py").write_text("WHERE = 'staged'\n")
        monkeypatch.setattr(room, "checkout", lambda: root)
        return root

    return make


def run(*arguments: str) -> int:
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    return int(caught.value.code or 0)


def submit(script_root: Path, address: str, folder: Path) -> str:
    """A job of the stub checkout, submitted through the room's own functions."""
    plan = JobPlan(
        submission_id=f"test-{secrets.token_hex(4)}",
        entrypoint="python jobs/run.py",
        environment=room.plan.ENVIRONMENT,
        metadata={"job_name": "test"},
        config_text="",
        notes=(),
    )
    staged = folder / "staged"
    staged.mkdir()
    return room.submit_job(room.connect(address), plan, room.stage(script_root, "", staged))


def test_success(
    address: str, checkout_with: Callable[[str], Path], capfd: pytest.CaptureFixture[str]
) -> None:
    checkout_with(SUCCEED)
    arguments = ["--address", address, "--name", "good-1", "--follow", "--only", "report"]
    assert run("submit", str(QUICKSTART), *arguments) == 0
    out, err = capfd.readouterr()
    assert out == "good-1\n"
    # The code of the upload, not of this machine's installed package.
    assert "code: staged arguments: ['job/config.yaml', '--only', 'report']\n" in err
    assert "config: name: quickstart\n" in err
    assert "  kdscale status good-1 --address" in err
    assert "  kdscale logs -f good-1 --address" in err
    assert "  kdscale stop good-1 --address" in err
    assert "good-1: SUCCEEDED after" in err

    assert run("status", "good-1", "--address", address) == 0
    assert capfd.readouterr().out.startswith("good-1: SUCCEEDED after")
    assert run("logs", "good-1", "--address", address) == 0
    log = capfd.readouterr().out
    assert run("logs", "-f", "good-1", "--address", address) == 0
    followed = capfd.readouterr()
    assert followed.out == log
    assert log.count("code: staged") == 1
    assert run("list", "--address", address) == 0
    assert "good-1\tSUCCEEDED\tquickstart" in capfd.readouterr().out

    # The id is the guard against submitting a run twice.
    assert run("submit", str(QUICKSTART), "--address", address, "--name", "good-1") == 2
    out, err = capfd.readouterr()
    assert out == ""
    assert "error: The cluster has a job 'good-1' already." in err


def test_failure_of_the_real_job(
    address: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """This checkout, its own job script and pipeline, and a corpus that is not there."""
    arguments = ["--address", address, "--name", "bad-1", "--follow"]
    arguments += ["--set", "data.train={kind: text, path: absent}", "--only", "prepare"]
    assert run("submit", str(QUICKSTART), *arguments) == 2
    out, err = capfd.readouterr()
    assert out == "bad-1\n"
    assert "bad-1: FAILED after" in err
    assert "reason: JOB_ENTRYPOINT_COMMAND_ERROR" in err
    assert f"{tmp_path}/absent" in err
    assert err.rstrip().splitlines()[-1].startswith("fix: ")
    assert run("status", "bad-1", "--address", address) == 2
    assert run("wait", "bad-1", "--address", address) == 2


def test_a_stage_of_the_real_pipeline(
    address: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """This checkout's package travels, runs on the cluster's Ray, and its log streams here."""
    corpus = write_corpus(tmp_path / "corpus")
    config = tiny_config(Path("corpus"), "output", data__evaluate={})
    write_config(tmp_path / "tiny.yaml", config)
    arguments = ["--address", address, "--name", "tiny-1", "--follow", "--only", "prepare"]
    assert run("submit", "tiny.yaml", *arguments) == 0
    out, err = capfd.readouterr()
    assert out == "tiny-1\n"
    assert f"data.train.path is {corpus}" in err
    assert "prepare: tokenizer: 512 tokens" in err
    assert "tiny-1: SUCCEEDED after" in err
    (manifest,) = (tmp_path / "output" / "prepared").glob("*/manifest.json")
    assert manifest.stat().st_size > 0


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_the_quickstart_as_a_job(
    address: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--address", address, "--follow", "--env", "WANDB_MODE=offline"]
    assert run("submit", str(QUICKSTART), *arguments) == 0
    err = capfd.readouterr().err
    for stage in ("prepare", "teacher", "cache", "distill", "evaluate", "report"):
        assert f"{stage}: done in" in err
    assert (tmp_path / "runs/quickstart/report/index.html").exists()


def test_exit_code_of_the_driver(
    address: str, checkout_with: Callable[[str], Path], tmp_path: Path
) -> None:
    job = submit(checkout_with("raise SystemExit(41)"), address, tmp_path)
    assert run("wait", job, "--address", address) == 41


def test_stop_winds_down(
    address: str,
    checkout_with: Callable[[str], Path],
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    job = submit(checkout_with(WAIT), address, tmp_path)
    client = room.connect(address)
    written: list[str] = []

    def stop_when_ready(text: str) -> None:
        written.append(text)
        if "ready" in text:
            assert room.stop_job(client, job)

    details = room.follow(client, job, stop_when_ready)
    assert room.exit_code(details) == 5
    # It got SIGINT and the time to react to it, not Ray's SIGTERM.
    assert "".join(written).endswith("ready\nwound down\n")
    assert run("status", job, "--address", address) == 5
    assert run("stop", job, "--address", address) == 0
    assert "The job had ended before." in capfd.readouterr().err


def test_ctrl_c_detaches(
    address: str, checkout_with: Callable[[str], Path], tmp_path: Path
) -> None:
    job = submit(checkout_with(WAIT), address, tmp_path)
    program = "from kdscale.cli import main; main()"
    follower = subprocess.Popen(
        [sys.executable, "-c", program, "logs", "-f", job, "--address", address],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert follower.stdout is not None
    for line in follower.stdout:
        if line == "ready\n":
            break
    follower.send_signal(signal.SIGINT)
    _, err = follower.communicate(timeout=60)
    assert follower.returncode == 130
    assert f"kdscale logs -f {job}" in err
    assert "Traceback" not in err
    client = room.connect(address)
    assert room.job_details(client, job).status == "RUNNING"
    assert run("stop", job, "--address", address) == 0
    assert room.job_details(client, job).status == "STOPPED"


@pytest.mark.parametrize("command", ["status", "logs", "stop", "wait"])
def test_unknown_job(address: str, capfd: pytest.CaptureFixture[str], command: str) -> None:
    assert run(command, "nobody", "--address", address) == 4
    out, err = capfd.readouterr()
    assert out == ""
    assert f"error: The cluster at {address} has no job 'nobody'." in err


@pytest.mark.parametrize("wrong", ["another", None])
def test_wrong_or_missing_token(
    address: str,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    token: str,
    wrong: str | None,
) -> None:
    if wrong is None:
        monkeypatch.delenv("RAY_AUTH_TOKEN")
        monkeypatch.setenv("HOME", str(tmp_path))
    else:
        monkeypatch.setenv("RAY_AUTH_TOKEN", wrong)
    assert run("status", "x", "--address", address) == 3
    err = capfd.readouterr().err
    assert f"error: The cluster at {address} refuses us" in err
    assert token not in err
