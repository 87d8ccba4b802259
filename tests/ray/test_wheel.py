"""The built wheel in a fresh environment, without a checkout and from an empty folder."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import sysconfig
import tempfile
import venv
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from tests.unit.preflight.runs import SMALL, write_documents, write_teacher

pytestmark = [pytest.mark.slow, pytest.mark.ray, pytest.mark.timeout(1800)]

ROOT = Path(__file__).parents[2]
BUILT_FROM = ("kdscale", "jobs", "cluster", "ray_cluster.yaml", "pyproject.toml", "README.md")
# Of what `kdscale init` wrote: fewer steps, and no measurement of speed.
SHORT = (
    *("--set", "distill.training.steps=4", "--set", "evaluate.speed=null"),
    *("--set", "evaluate.samples=null", "--set", "data.evaluation_sequences=8"),
)


@dataclass(frozen=True)
class Installed:
    """A fresh environment with the wheel, and an empty folder to work in."""

    python: Path
    folder: Path
    variables: dict[str, str]

    def run(self, *arguments: str, timeout: float = 900) -> subprocess.CompletedProcess[str]:
        """Run a program of the environment in the folder."""
        program = self.python.with_name(arguments[0])
        return subprocess.run(
            [str(program), *arguments[1:]],
            cwd=self.folder,
            env=self.variables,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )

    def kdscale(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run a command that has to succeed."""
        done = self.run("kdscale", *arguments)
        if done.returncode != 0:
            pytest.fail(f"{arguments}: {done.stdout[-3000:]}\n{done.stderr[-6000:]}")
        return done


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the wheel from a copy: a build leaves files behind, which a later one would pack."""
    source = tmp_path_factory.mktemp("source")
    for name in BUILT_FROM:
        place = ROOT / name
        leave = shutil.ignore_patterns("__pycache__")
        if place.is_dir():
            shutil.copytree(place, source / name, symlinks=True, ignore=leave)
        else:
            shutil.copy(place, source / name)
    command = [sys.executable, "-m", "pip", "wheel", str(source), "--no-deps", "--quiet"]
    command += ["--no-build-isolation", "--wheel-dir", str(source / "wheels")]
    subprocess.run(command, check=True)
    (built,) = (source / "wheels").glob("*.whl")
    return built


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Installed:
    """Install it in an environment that sees this one's packages, but not this kdscale."""
    folder = tmp_path_factory.mktemp("installed")
    venv.create(folder / "env", symlinks=True)
    python = folder / "env" / "bin" / "python"
    site = folder / "env" / "lib" / f"python{sys.version_info[0]}.{sys.version_info[1]}"
    # A folder named in a .pth file is searched, and its own .pth files (an editable install) not.
    packages = sysconfig.get_paths()["purelib"]
    (site / "site-packages" / "packages.pth").write_text(f"{packages}\n")
    command = [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet"]
    command += ["--no-deps", "--no-index", "--ignore-installed", str(wheel)]
    subprocess.run(command, check=True)
    empty = folder / "empty"
    empty.mkdir()
    left_out = ("RAY_", "PYTHONPATH", "VIRTUAL_ENV", "KDSCALE_")
    variables = {k: v for k, v in os.environ.items() if not k.startswith(left_out)}
    variables |= {
        "PATH": f"{python.parent}{os.pathsep}{os.environ['PATH']}",
        "XDG_STATE_HOME": str(folder / "state"),
        "HOME": str(folder),
        "WANDB_MODE": "disabled",
        "COLUMNS": "200",
    }
    return Installed(python, empty, variables)


@pytest.fixture(scope="module")
def config(installed: Installed) -> str:
    """Return a config that `kdscale init` wrote for two models and JSON lines."""
    write_teacher(installed.folder / "teacher")
    write_teacher(installed.folder / "student", options=SMALL)
    write_documents(installed.folder / "text", 200)
    models = ("--teacher", "teacher", "--student", "student")
    installed.kdscale("init", "run.yaml", *models, "--data", "text/a.jsonl", "--output", "out")
    return "run.yaml"


@pytest.fixture(scope="module")
def address(installed: Installed) -> Iterator[str]:
    """Start Ray with `ray start --head`; yield its dashboard's address."""
    # Short, because the path of a UNIX socket has at most 107 characters.
    scratch = Path(tempfile.mkdtemp(prefix="kw"))
    sockets = [socket.socket() for _ in range(5)]
    for item in sockets:
        item.bind(("127.0.0.1", 0))
    port, dashboard, agent, client, metrics = (item.getsockname()[1] for item in sockets)
    for item in sockets:
        item.close()
    command = [str(installed.python), "-m", "ray.scripts.scripts", "start", "--head", "--block"]
    command += ["--num-cpus", "2", "--disable-usage-stats", "--temp-dir", str(scratch)]
    command += ["--port", str(port), "--dashboard-port", str(dashboard)]
    command += ["--dashboard-agent-listen-port", str(agent), "--metrics-export-port", str(metrics)]
    command += ["--ray-client-server-port", str(client)]
    command += ["--min-worker-port", "0", "--max-worker-port", "0"]
    process = subprocess.Popen(
        command,
        cwd=installed.folder,
        env=installed.variables,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        url = f"http://127.0.0.1:{dashboard}"
        for _ in range(60):
            assert process.poll() is None
            if installed.run("kdscale", "list", "--address", url).returncode == 0:
                break
        yield url
    finally:
        children = psutil.Process(process.pid).children(recursive=True)
        process.send_signal(signal.SIGKILL)
        for child in children:
            if child.is_running():
                child.kill()
        process.wait(60)
        shutil.rmtree(scratch, ignore_errors=True)


def test_every_file_that_is_no_module_travels(installed: Installed) -> None:
    code = (
        "import json, kdscale; from kdscale.share import CLUSTERS, EXAMPLES, ROOT\n"
        "files = [*CLUSTERS.values(), *EXAMPLES.values(), ROOT / 'jobs' / 'run.py']\n"
        "print(json.dumps([kdscale.__file__, [str(each) for each in files if each.is_file()]]))"
    )
    package, files = json.loads(installed.run("python", "-c", code).stdout)
    assert str(installed.python.parents[1]) in package
    configs = len(list((ROOT / "jobs" / "configs").glob("*.yaml")))
    assert len(files) == configs + 6
    installed.kdscale("init", "--cluster", "kuberay")
    written = (installed.folder / "kuberay.yaml").read_text()
    assert written == (ROOT / "cluster" / "kuberay.yaml").read_text()


def test_a_run_of_what_init_wrote(installed: Installed, config: str) -> None:
    done = installed.kdscale("run", config, *SHORT)
    assert "evaluate: done" in done.stdout + done.stderr
    assert (installed.folder / "out" / "report" / "index.html").is_file()
    assert "complete" in installed.kdscale("status", "out").stdout


def test_a_job_is_followed_and_found_again(installed: Installed, config: str, address: str) -> None:
    output = installed.folder / "job-output"
    arguments = ("--until", "prepare", "--set", f"output={output}", "--name", "first-1")
    done = installed.kdscale("submit", config, "--address", address, "--follow", *arguments)
    assert done.stdout == "first-1\n"
    assert "first-1: SUCCEEDED" in done.stderr
    assert list((output / "prepared").glob("*/manifest.json"))
    # Without an address, by the id and by the run's output.
    assert "first-1: SUCCEEDED" in installed.kdscale("status", "first-1").stdout
    assert "prepare: " in installed.kdscale("logs", str(output)).stdout
    assert "had ended before" in installed.run("kdscale", "stop", "first-1").stderr


def test_a_dry_run_for_kubernetes(installed: Installed, config: str) -> None:
    places = ("output=s3://bucket/run", "data.train.path=/data", "teacher.load=/models/teacher")
    changes = [word for place in places for word in ("--set", place)]
    changes += ["--set", "distill.student.load=/models/student"]
    done = installed.kdscale("submit", config, "--backend", "kuberay", "--dry-run", *changes)
    assert "kind: RayJob" in done.stdout
