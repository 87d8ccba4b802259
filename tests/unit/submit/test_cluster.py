"""Which address and which token a submission uses."""

import json
import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from types import SimpleNamespace

import pytest
import ray

from kdscale.errors import KdscaleError
from kdscale.submit.cluster import (
    DEFAULT_ADDRESS,
    check_versions,
    connect,
    find_token,
    resolve_address,
)

HEAD = "http://head:8265"


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("RAY_API_SERVER_ADDRESS", "RAY_ADDRESS", "RAY_AUTH_MODE", "RAY_AUTH_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.delenv("RAY_AUTH_TOKEN_PATH", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))


@pytest.mark.parametrize("given", [HEAD, f"{HEAD}/", "head:8265"])
def test_given_address_is_used(given: str) -> None:
    assert resolve_address(given) == HEAD


def test_default_is_this_machine() -> None:
    assert resolve_address(None) == DEFAULT_ADDRESS


@pytest.mark.parametrize("name", ["RAY_API_SERVER_ADDRESS", "RAY_ADDRESS"])
def test_an_address_that_is_given_wins_over_the_environment(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setenv(name, "http://127.0.0.1:1")
    with cluster(ray.__version__, None) as there:
        client = connect(there.get_address())
        assert client.get_address() == there.get_address()
    assert os.environ[name] == "http://127.0.0.1:1"


def test_environment_is_used_without_an_address(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    assert resolve_address(None) == "10.0.0.1:6379"


@pytest.mark.parametrize("address", ["ray://head:10001", "s3://bucket", "ftp://head"])
def test_only_http_addresses(address: str) -> None:
    with pytest.raises(KdscaleError, match="dashboard"):
        resolve_address(address)


def test_token_order(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert find_token() is None
    default = tmp_path / ".ray" / "auth_token"
    default.parent.mkdir()
    default.write_text("from-default\n")
    assert find_token() == "from-default"
    other = tmp_path / "token"
    other.write_text("from-path\n")
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(other))
    assert find_token() == "from-path"
    monkeypatch.setenv("RAY_AUTH_TOKEN", " from-variable ")
    assert find_token() == "from-variable"
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    assert find_token() is None


@contextmanager
def cluster(ray_version: str, python: str | None) -> Iterator[SimpleNamespace]:
    """Yield a client of a server that reports these versions."""
    command = [f"/opt/lib/python{python}/site-packages/ray/core/src/ray/raylet/raylet"]
    summary = [] if python is None else [{"raylet": {"cmdline": command}}]
    answers = {
        "/api/version": {"ray_version": ray_version},
        "/nodes?view=summary": {"data": {"summary": summary}},
    }

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(json.dumps(answers[self.path]).encode())

        def log_message(self, *_: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}"
        yield SimpleNamespace(get_address=lambda: url)
        server.shutdown()


OURS = ".".join(map(str, sys.version_info[:2]))


@pytest.mark.parametrize("python", [OURS, None])
def test_the_same_versions_are_fine(python: str | None) -> None:
    with cluster(ray.__version__, python) as client:
        check_versions(client)
    patch = ray.__version__.rsplit(".", 1)[0] + ".999"
    with cluster(patch, python) as client:
        check_versions(client)


@pytest.mark.parametrize(
    ("ray_version", "python", "named"),
    [("2.9.3", OURS, "Ray 2.9.3"), (ray.__version__, "3.9", "Python 3.9")],
)
def test_version_skew_is_refused(ray_version: str, python: str, named: str) -> None:
    with cluster(ray_version, python) as client, pytest.raises(KdscaleError) as caught:
        check_versions(client)
    assert f"has {named}, and this machine has {named.split()[0]} " in caught.value.problem
    assert "--allow-version-skew" in caught.value.fix
