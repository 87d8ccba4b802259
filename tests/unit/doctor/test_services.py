"""Ray's address and W&B, as the environment says; W&B's server is a real one on the loopback."""

import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from kdscale.doctor import machine


class Refuses(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_error(403)

    def log_message(self, format: str, *arguments: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[str]:
    """Start a server that answers, if only with a refusal."""
    http = HTTPServer(("127.0.0.1", 0), Refuses)
    thread = threading.Thread(target=http.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{http.server_port}"
    http.shutdown()
    thread.join()
    http.server_close()


def test_ray_addresses_that_differ_warn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.delenv("RAY_API_SERVER_ADDRESS", raising=False)
    assert machine.ray_address().word == "ok"
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    assert machine.ray_address().value == "RAY_ADDRESS=10.0.0.1:6379"
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", "http://10.0.0.2:8265")
    assert machine.ray_address().word == "warning"


def test_wandb_offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    assert machine.wandb().value == "offline (WANDB_MODE=offline)"


def test_wandb_online(monkeypatch: pytest.MonkeyPatch, server: str) -> None:
    monkeypatch.setattr(machine, "wandb_target", lambda: ("online", server))
    assert machine.wandb().value == f"online, {server} answers"
    with socket.create_server(("127.0.0.1", 0)) as closed:
        silent = f"http://127.0.0.1:{closed.getsockname()[1]}"
    monkeypatch.setattr(machine, "wandb_target", lambda: ("online", silent))
    found = machine.wandb()
    assert found.word == "warning"
    assert "Connection refused" in found.value
    assert "WANDB_MODE=offline" in found.fix


def test_wandb_never_shows_the_key(monkeypatch: pytest.MonkeyPatch, server: str) -> None:
    key = "0123456789abcdef" * 3
    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.setenv("WANDB_API_KEY", key)
    monkeypatch.setenv("WANDB_BASE_URL", server)
    found = machine.wandb()
    assert found.value.startswith("online, ")
    assert key not in found.value
