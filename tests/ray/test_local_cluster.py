"""`cluster/local.sh`: a head and two workers come up behind a token, and leave nothing behind."""

import os
import re
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import requests

from kdscale.submit import connect, kuberay
from kdscale.submit.job import UnreachableError

pytestmark = [pytest.mark.ray, pytest.mark.timeout(300)]

SCRIPT = Path(__file__).parents[2] / "cluster" / "local.sh"
# The script's own distances from its port to the others.
OFFSETS = (0, 1, 2, 11, 12, 21, 22, 1886)


def free_port() -> int:
    for port in range(20_000 + os.getpid() % 10_000, 60_000, 37):
        sockets = [socket.socket() for _ in OFFSETS]
        try:
            for item, offset in zip(sockets, OFFSETS, strict=True):
                item.bind(("127.0.0.1", port + offset))
        except OSError:
            continue
        else:
            return port
        finally:
            for item in sockets:
                item.close()
    raise AssertionError("no free ports")


class Local:
    """The script with a folder, a port and a token of its own."""

    def __init__(self) -> None:
        # Short, because the path of a UNIX socket has at most 107 characters.
        self.folder = Path(tempfile.mkdtemp(prefix="kl"))
        self.port = free_port()
        self.token = secrets.token_hex(16)
        self.url = f"http://127.0.0.1:{self.port + 1886}"

    def __call__(self, command: str, **settings: str) -> subprocess.CompletedProcess[str]:
        environment = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
        environment |= {
            "KDSCALE_LOCAL_DIR": str(self.folder),
            "KDSCALE_LOCAL_PORT": str(self.port),
            "KDSCALE_LOCAL_CPUS": "1",
            **settings,
            "RAY_AUTH_TOKEN": self.token,
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        }
        return subprocess.run(
            [str(SCRIPT), command], env=environment, capture_output=True, text=True, check=False
        )

    def processes(self) -> list[str]:
        """Command lines of everything that works in our folder or at our port."""
        listed = subprocess.run(
            ["ps", "-eww", "-o", "args"], capture_output=True, text=True, check=True
        ).stdout
        ours = re.compile(rf"{re.escape(str(self.folder))}|:{self.port}\b")
        return [line for line in listed.splitlines() if ours.search(line)]


@pytest.fixture
def local() -> Iterator[Local]:
    cluster = Local()
    yield cluster
    cluster("down")
    shutil.rmtree(cluster.folder, ignore_errors=True)


@pytest.mark.parametrize("workers", ["0", "101", "two", "-1", ""])
def test_a_wrong_number_of_workers_is_refused(local: Local, workers: str) -> None:
    up = local("up", KDSCALE_LOCAL_WORKERS=workers or " ")
    assert up.returncode == 2
    assert "from 1 to 100" in up.stderr
    assert local.processes() == []


def test_up_status_down(local: Local, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS", "RAY_AUTH_MODE", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)
    up = local(
        "up", KDSCALE_LOCAL_RESOURCES='{"disk": 3}', KDSCALE_LOCAL_LABELS="zone=a,market=spot"
    )
    assert up.returncode == 0, up.stderr
    assert f"--address {local.url}" in up.stdout
    assert local.token not in up.stdout + up.stderr

    # Ray's own summary follows the nodes with a delay.
    deadline = time.monotonic() + 60
    while True:
        status = local("status").stdout
        if len(re.findall(r"node_[0-9a-f]{40}", status)) == 3 and "0.0/2.0 CPU" in status:
            assert "0.0/6.0 disk" in status
            break
        assert time.monotonic() < deadline, status

    monkeypatch.setenv("RAY_AUTH_TOKEN", local.token)
    assert connect(local.url).get_address() == local.url
    monkeypatch.delenv("RAY_AUTH_TOKEN")
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(UnreachableError, match="refuses us"):
        connect(local.url)

    again = local("up")
    assert again.returncode == 2
    assert "has a cluster already" in again.stderr

    # What Kubernetes asks each pod, without a token: the nodes' agents.
    template = (Path(kuberay.__file__).parent / "rayjob.yaml.j2").read_text()
    for offset in (2, 11, 21):
        url = f"http://127.0.0.1:{local.port + offset}/api/healthz"
        assert "httpGet: {path: /api/healthz, port: 52365}" in template
        assert requests.get(url, timeout=10).status_code == 200, url

    assert len(local.processes()) > 3
    down = local("down")
    assert down.returncode == 0, down.stderr
    assert local.processes() == []
    assert list(local.folder.glob("*.pid")) == []
