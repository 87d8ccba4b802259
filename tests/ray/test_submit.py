"""Submitting to a real Ray with token authentication: each exit code, and what may go wrong."""

import hashlib
import json
import os
import re
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
import requests

import kdscale.submit as room
from kdscale.cli import main
from kdscale.store import open_store
from kdscale.submit import graph
from kdscale.submit.job import UnreachableError
from kdscale.submit.job_plan import ENVIRONMENT, JobPlan
from kdscale.submit.ray_jobs import RayJobs
from tests.proxy import CuttableProxy
from tests.runs import tiny_config, write_config, write_corpus
from tests.s3 import S3Server

pytestmark = [pytest.mark.ray, pytest.mark.s3, pytest.mark.timeout(600)]

QUICKSTART = Path(__file__).parents[2] / "jobs" / "configs" / "quickstart.yaml"
JOBS = "kdscale/share/jobs"
START_SECONDS = 300

SUCCEED = """
import sys, kdscale
print("code:", kdscale.WHERE, "arguments:", sys.argv[1:])
print("config:", open(sys.argv[1]).read().splitlines()[0])
"""
SECRET_USER = """
import hashlib, os, pathlib, sys, time
import ray
import yaml
from kdscale.config import load_config
from kdscale.errors import KdscaleError
from kdscale.store import open_store
from kdscale.submit.secrets import discard_secrets, open_secrets
from kdscale.tracking.trackers import open_tracker

def digest():
    return hashlib.sha256(os.environ["HF_TOKEN"].encode()).hexdigest()

open_secrets()  # as jobs/run.py does
print("driver:", digest())
ray.init(logging_level="WARNING")
print("worker:", ray.get(ray.remote(num_cpus=0)(digest).remote()))
config = load_config(sys.argv[1])
tracker = open_tracker(
    config.tracking, run="r", stage="teacher", store=open_store(config.output),
    resolved={"note": "the token is " + os.environ["HF_TOKEN"]},
)
tracker.log(1, 1, {"loss": 1.0})
tracker.finish()
print("tracked")
while not pathlib.Path("GO").exists(): time.sleep(0.1)
discard_secrets()
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
def head_folder() -> Iterator[Path]:
    """Return the folder of the head's files."""
    # Short, because the path of a UNIX socket has at most 107 characters.
    folder = Path(tempfile.mkdtemp(prefix="kr"))
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="module")
def address(token: str, head_folder: Path, s3_server: S3Server) -> Iterator[str]:
    """Start a head with two CPUs, ended by its process id; yield its dashboard's address.

    Its node has credentials of its own for the S3 server, as a machine of a cloud has.
    """
    folder = head_folder
    port, dashboard, agent, client, metrics = free_ports(5)
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    environment |= {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": token,
        **s3_server.env,
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
    """Make a checkout with this job script, and let `kdscale submit` use it."""

    def make(script: str) -> Path:
        root = tmp_path / "checkout"
        (root / JOBS).mkdir(parents=True)
        (root / JOBS / "run.py").write_text(script)
        (root / "kdscale" / "__init__.py").write_text("WHERE = 'staged'\n")
        for module in (room, graph):
            monkeypatch.setattr(module, "code_root", lambda: root)
        return root

    return make


def with_real_package(root: Path) -> None:
    """Give the checkout the package as it is, beside its own job script."""
    script = (root / JOBS / "run.py").read_text()
    shutil.rmtree(root / "kdscale")
    package = Path(room.__file__).parents[1]
    shutil.copytree(package, root / "kdscale", ignore=shutil.ignore_patterns("__pycache__"))
    (root / JOBS / "run.py").write_text(script)


def run(*arguments: str) -> int:
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    return int(caught.value.code or 0)


def submit(script_root: Path, address: str, folder: Path) -> str:
    """Submit a job of the stub checkout through the package's functions."""
    plan = JobPlan(
        submission_id=f"test-{secrets.token_hex(4)}",
        entrypoint="python jobs/run.py",
        environment=ENVIRONMENT,
        metadata={"job_name": "test"},
        config_text="",
        places=(),
    )
    staged = folder / "staged"
    staged.mkdir()
    RayJobs(address).submit(plan, room.stage(script_root, "", staged))
    return plan.submission_id


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
    assert "  kdscale status good-1\n" in err
    assert "  kdscale logs -f good-1\n" in err
    assert "  kdscale stop good-1\n" in err
    assert "good-1: SUCCEEDED after" in err

    # Where it went is recorded, also by its output.
    for thing in ("good-1", f"{Path.cwd()}/runs/quickstart", str(QUICKSTART)):
        assert run("logs", thing) == 0
        assert "code: staged" in capfd.readouterr().out
    assert run("status", "good-1") == 0
    assert capfd.readouterr().out.startswith("good-1: SUCCEEDED after")
    assert run("logs", "good-1", "--address", address) == 0
    log = capfd.readouterr().out
    assert run("logs", "-f", "good-1", "--address", address) == 0
    followed = capfd.readouterr()
    assert followed.out == log
    assert log.count("code: staged") == 1
    assert run("list", "--address", address) == 0
    assert "good-1\tSUCCEEDED\tquickstart" in capfd.readouterr().out


def test_a_repeated_submission_finds_the_job(
    address: str, checkout_with: Callable[[str], Path], capfd: pytest.CaptureFixture[str]
) -> None:
    checkout_with(SUCCEED)
    arguments = ["submit", str(QUICKSTART), "--address", address, "--name", "twice-1"]
    assert run(*arguments, "--json") == 0
    first = json.loads(capfd.readouterr().out)
    assert (first["id"], first["created"]) == ("twice-1", True)
    assert run(*arguments, "--json", "--follow") == 0
    out, err = capfd.readouterr()
    assert json.loads(out)["status"] == "SUCCEEDED"
    assert json.loads(out)["created"] is False
    assert "The job is there already, from an earlier submission." in err
    assert run(*arguments) == 0
    out, err = capfd.readouterr()
    assert out == "twice-1\n"
    assert "twice-1: SUCCEEDED after" in err
    assert run(*arguments, "--set", "seed=7") == 2
    out, err = capfd.readouterr()
    assert out == ""
    assert "error: The id 'twice-1' belongs to a job with another config" in err
    assert run("list", "--address", address, "--json") == 0
    jobs = json.loads(capfd.readouterr().out)["jobs"]
    assert [job["id"] for job in jobs].count("twice-1") == 1
    assert run("status", "twice-1", "--address", address, "--json") == 0
    assert json.loads(capfd.readouterr().out)["exit_code"] == 0


def test_code_and_secret_through_an_object_store(
    address: str,
    checkout_with: Callable[[str], Path],
    s3_env: S3Server,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """Ray's node fetches the code, and the job its secret, with the node's own credentials."""
    root = checkout_with(
        "import os, kdscale\n"
        "from kdscale.submit.secrets import discard_secrets, open_secrets\n"
        "open_secrets()\n"
        "print(kdscale.__file__, len(os.environ['HF_TOKEN']))\n"
        "discard_secrets()\n"
    )
    with_real_package(root)
    monkeypatch.setenv("HF_TOKEN", secrets.token_hex(20))
    arguments = ["--address", address, "--name", "store-1", "--follow", "--secret", "HF_TOKEN"]
    arguments += ["--upload-to", "s3://kdscale/code", "--set", "output=s3://kdscale/run"]
    assert run("submit", str(QUICKSTART), *arguments) == 0
    err = capfd.readouterr().err
    assert re.search(r"s3_[0-9a-f]+/kdscale/__init__.py 40\n", err), err
    assert len(open_store("s3://kdscale/code").list()) == 1
    assert open_store("s3://kdscale/run").list() == []


def test_a_graph_and_its_repeated_submission(
    address: str,
    checkout_with: Callable[[str], Path],
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """The driver on the cluster submits the nodes in order to its own cluster.

    One that failed is continued by submitting the graph again.
    """
    fail = tmp_path / "fail"
    fail.touch()
    root = checkout_with(
        "import pathlib, sys\n"
        "if sys.argv[1] == 'run-graph':\n"
        "    from kdscale.cli.entry import run_job\n"
        "    run_job()\n"
        f"sys.exit('--only' in sys.argv and pathlib.Path({str(fail)!r}).exists())\n"
    )
    with_real_package(root)
    (tmp_path / "small.yaml").write_text("distill: {baseline: false}\n")
    arguments = ["submit", str(QUICKSTART), "--student", "small.yaml", "--address", address]
    arguments += ["--set", f"output={tmp_path}/output", "--name", "graph-1", "--follow"]
    assert run(*arguments) == 1
    out, err = capfd.readouterr()
    assert out == "graph-1\n"
    assert "small-distill: failed" in err
    assert "small-report: blocked" in err
    fail.unlink()
    assert run(*arguments) == 0
    out, err = capfd.readouterr()
    assert out == "graph-1.2\n"
    assert "small-report: done" in err
    assert run("list", "--address", address, "--json") == 0
    jobs = json.loads(capfd.readouterr().out)["jobs"]
    graph = {job["id"]: job["status"] for job in jobs if job["id"].startswith("graph-1")}
    assert graph == {
        "graph-1": "FAILED",
        "graph-1.2": "SUCCEEDED",
        "graph-1-capture": "SUCCEEDED",
        "graph-1-small-distill": "FAILED",
        "graph-1-small-distill.2": "SUCCEEDED",
        "graph-1-small-report": "SUCCEEDED",
    }
    assert run(*arguments[:-1], "--json") == 0
    assert json.loads(capfd.readouterr().out)["created"] is False


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
    assert re.search(r"^\S+Z fix: ", err.rstrip().splitlines()[-1])
    assert run("status", "bad-1", "--address", address) == 2
    assert run("wait", "bad-1", "--address", address) == 2


@pytest.mark.slow
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
@pytest.mark.timeout(900)
def test_a_training_that_is_stopped_has_a_checkpoint_and_goes_on(
    address: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    steps = 1500
    write_corpus(tmp_path / "corpus")
    training = {"steps": steps, "checkpoint_every": 2 * steps, "early_stopping": None}
    changes = {f"teacher__training__{name}": value for name, value in training.items()}
    write_config(tmp_path / "tiny.yaml", tiny_config(Path("corpus"), "output", **changes))
    arguments = ["tiny.yaml", "--address", address, "--until", "teacher"]
    assert run("submit", *arguments, "--name", "paused-1") == 0
    metrics = tmp_path / "output/metrics/teacher.jsonl"
    while not metrics.exists():
        assert not RayJobs(address).details("paused-1").is_over, capfd.readouterr()
        time.sleep(1)
    assert run("stop", "paused-1", "--address", address, "--grace", "60s") == 0
    assert run("status", "paused-1", "--address", address) == 5
    (saved,) = (tmp_path / "output/checkpoints").glob("teacher-*/step-*/complete.json")
    left = int(saved.parent.name.removeprefix("step-"))
    assert 0 < left < steps
    assert run("submit", *arguments, "--name", "paused-2", "--follow") == 0
    assert f"resumed at step {left} of {steps}" in capfd.readouterr().err


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
    jobs = RayJobs(address)
    written: list[str] = []

    def stop_when_ready(text: str) -> None:
        written.append(text)
        if "ready" in text:
            assert jobs.stop(job)

    assert room.exit_code(room.follow(jobs, job, stop_when_ready)) == 5
    # It got SIGINT and the time to react to it, not Ray's SIGTERM. A line of Ray's may be anywhere.
    assert "".join(written).endswith("wound down\n")
    assert run("status", job, "--address", address) == 5
    assert run("stop", job, "--address", address) == 0
    assert "The job had ended before." in capfd.readouterr().err


def interrupted_follower(job: str, address: str, times: int) -> tuple[int, str]:
    """(exit code, stderr) of `logs -f` in a process that gets Ctrl-C once the job is ready."""
    program = "from kdscale.cli import main; main()"
    follower = subprocess.Popen(
        [sys.executable, "-c", program, "logs", "-f", job, "--address", address],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert follower.stdout is not None
    assert follower.stderr is not None
    for line in follower.stdout:
        if line == "ready\n":
            break
    follower.send_signal(signal.SIGINT)
    said = ""
    while times == 2 and "Detached" not in said:
        said += follower.stderr.readline()
    if times == 2:
        follower.send_signal(signal.SIGINT)
    said += follower.stderr.read()
    return follower.wait(60), said


def test_ctrl_c_detaches(
    address: str, checkout_with: Callable[[str], Path], tmp_path: Path
) -> None:
    job = submit(checkout_with(WAIT), address, tmp_path)
    code, err = interrupted_follower(job, address, times=1)
    assert code == 130
    assert f"kdscale logs -f {job} --address {address}" in err
    assert "Traceback" not in err
    assert RayJobs(address).details(job).status == "RUNNING"
    # Waiting for it has an end too, and the job goes on.
    assert run("wait", job, "--address", address, "--timeout", "1s") == 6
    assert RayJobs(address).details(job).status == "RUNNING"

    code, err = interrupted_follower(job, address, times=2)
    assert code == 130
    assert "Asked the job to stop." in err
    assert "Traceback" not in err
    assert run("wait", job, "--address", address) == 5


def test_a_dropped_stream_does_not_end_the_following(
    address: str,
    checkout_with: Callable[[str], Path],
    tmp_path: Path,
) -> None:
    """All connections are reset while the job runs on: the log is whole, the verdict the job's."""
    go = tmp_path / "go"
    lines = f"""
import pathlib, time
for i in range(50): print("before", i)
while not pathlib.Path({str(go)!r}).exists(): time.sleep(0.1)
for i in range(50): print("after", i)
raise SystemExit(41)
"""
    job = submit(checkout_with(lines), address, tmp_path)
    with CuttableProxy(address.removeprefix("http://")) as proxy:
        written: list[str] = []

        def cut_in_the_middle(text: str) -> None:
            written.append(text)
            if not go.exists() and "before 49" in "".join(written):
                proxy.cut()
                go.touch()

        ended = room.follow(RayJobs(proxy.address), job, cut_in_the_middle)
        assert go.exists()
    assert room.exit_code(ended) == 41
    # Ray's own lines come when they come.
    text = "".join(written)
    ours = [line for line in text.splitlines() if line.startswith(("before", "after"))]
    assert ours == [f"{part} {i}" for part in ("before", "after") for i in range(50)]
    assert text.count("Running entrypoint") == 1


def find_in_files(folder: Path, needle: str) -> list[Path]:
    """Return the files below `folder` that hold the text."""
    found = []
    for path in folder.rglob("*"):
        if path.is_file() and not path.is_symlink() and needle.encode() in path.read_bytes():
            found.append(path)
    return found


def test_a_secret_reaches_the_job_and_is_readable_nowhere(
    address: str,
    token: str,
    head_folder: Path,
    checkout_with: Callable[[str], Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    value, go, output = secrets.token_hex(20), tmp_path / "go", tmp_path / "output"
    root = checkout_with(SECRET_USER.replace("GO", str(go)))
    with_real_package(root)
    monkeypatch.setenv("HF_TOKEN", value)
    arguments = ["--address", address, "--name", "secret-1", "--secret", "HF_TOKEN"]
    arguments += ["--env", "WANDB_MODE=offline", "--set", f"output={output}"]
    assert run("submit", str(QUICKSTART), *arguments) == 0

    jobs = RayJobs(address)
    deadline = time.monotonic() + 120
    while "tracked" not in (log := jobs.log("secret-1")):
        assert not jobs.details("secret-1").is_over, log
        assert time.monotonic() < deadline, log
        time.sleep(0.5)
    digest = hashlib.sha256(value.encode()).hexdigest()
    assert f"driver: {digest}" in log
    assert f"worker: {digest}" in log

    # The job is going, so all there ever is of it is there.
    (sealed,) = (output / "secrets").iterdir()
    assert sealed.stat().st_mode & 0o777 == 0o600
    assert list(output.rglob("*.wandb"))
    answers = [log, str(jobs.client.get_job_info("secret-1")), *dashboard_answers(address, token)]
    assert any('"HF_TOKEN' in answer or "KDSCALE_SECRETS" in answer for answer in answers)
    assert run("status", "secret-1", "--address", address, "--json") == 0
    answers.extend(capfd.readouterr())
    assert [answer[:200] for answer in answers if value in answer] == []
    for folder in (head_folder, output, root):
        assert find_in_files(folder, value) == []

    go.touch()
    assert run("wait", "secret-1", "--address", address) == 0
    assert not sealed.exists()
    assert find_in_files(head_folder, value) == []


def dashboard_answers(address: str, token: str) -> list[str]:
    """Return the dashboard's answers."""
    kinds = ("actors", "jobs", "nodes", "workers", "tasks", "runtime_envs")
    paths = ["/api/jobs/", "/api/jobs/secret-1", "/api/jobs/secret-1/logs", "/nodes?view=summary"]
    paths += ["/logical/actors", "/api/cluster_status", *(f"/api/v0/{k}?detail=1" for k in kinds)]
    headers = {"Authorization": f"Bearer {token}"}
    answers = [requests.get(address + path, headers=headers, timeout=60) for path in paths]
    assert all(answer.ok for answer in answers[:4])
    return [answer.text for answer in answers]


def test_a_killed_job_leaves_no_sealed_secret(
    address: str,
    checkout_with: Callable[[str], Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    root = checkout_with("import os; os.kill(os.getpid(), 9)")
    with_real_package(root)
    monkeypatch.setenv("HF_TOKEN", "x")
    arguments = ["--address", address, "--name", "secret-2", "--secret", "HF_TOKEN"]
    arguments += ["--set", f"output={tmp_path}/output", "--detach"]
    assert run("submit", str(QUICKSTART), *arguments) == 0
    assert len(list((tmp_path / "output" / "secrets").iterdir())) == 1
    assert run("wait", "secret-2", "--address", address) == 1
    assert not (tmp_path / "output" / "secrets").exists()


def test_since(
    address: str, checkout_with: Callable[[str], Path], capfd: pytest.CaptureFixture[str]
) -> None:
    checkout_with(
        "import time\n"
        "from datetime import datetime, timedelta, timezone\n"
        "def say(ago, text):\n"
        "    t = datetime.now(timezone.utc) - timedelta(seconds=ago)\n"
        "    print(t.strftime('%Y-%m-%dT%H:%M:%SZ'), text)\n"
        "say(7200, 'old'); say(10, 'young'); time.sleep(2)\n"
    )
    arguments = ["--address", address, "--name", "times-1", "--follow"]
    assert run("submit", str(QUICKSTART), *arguments) == 0
    capfd.readouterr()
    # Younger than five minutes is the job itself, so all of it.
    assert run("logs", "times-1", "--address", address, "--since", "5m") == 0
    assert "old" in capfd.readouterr().out
    assert run("logs", "times-1", "-f", "--address", address, "--since", "1s") == 0
    assert capfd.readouterr().out == ""


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_two_hundred_jobs_and_none_is_lost(
    address: str, checkout_with: Callable[[str], Path], capfd: pytest.CaptureFixture[str]
) -> None:
    """In waves, as every job is three processes on the head."""
    checkout_with(WAIT)

    def both(job: str) -> tuple[int, int]:
        # Python loses an interrupt that meets a callback of its start; such a job is killed then.
        options = ("--address", address, "--name", job, "--grace", "1m")
        submitted = run("submit", str(QUICKSTART), *options)
        return submitted, run("stop", job, "--address", address)

    names = [f"load-{number:03}" for number in range(200)]
    with ThreadPoolExecutor(8) as pool:
        codes = list(pool.map(both, names))
    assert codes == [(0, 0)] * len(names)
    capfd.readouterr()
    assert run("list", "--address", address, "--json") == 0
    jobs = json.loads(capfd.readouterr().out)["jobs"]
    ours = [job for job in jobs if job["id"].startswith("load-")]
    assert sorted(job["id"] for job in ours) == names
    # Stopped before their program began, or wound down by it: each has its verdict.
    assert {job["status"] for job in ours} == {"STOPPED"}


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
