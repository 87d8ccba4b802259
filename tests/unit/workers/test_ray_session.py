"""A Ray that is gone, or does not start: an error within a minute, in a sentence."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from kdscale.errors import KdscaleError
from kdscale.workers import ray_session
from tests.s3 import free_ports


def refusal(address: str, monkeypatch: pytest.MonkeyPatch) -> KdscaleError:
    monkeypatch.setenv("RAY_ADDRESS", address)
    with pytest.raises(KdscaleError) as caught, ray_session.ray_session():
        pass
    assert f"RAY_ADDRESS={address}" in caught.value.problem
    return caught.value


def test_a_cluster_that_is_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray_session, "_RETRY_SECONDS", 0.0)
    (port,) = free_ports(1)
    for protocol in ("", "ray://"):
        error = refusal(f"{protocol}127.0.0.1:{port}", monkeypatch)
        assert "No Ray cluster answers" in error.problem
        assert "Connection refused" in error.problem
        assert "unset RAY_ADDRESS" in error.fix


def test_an_unknown_host_is_refused_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(ray_session, "_RETRY_SECONDS", 600.0)
    assert (
        "the host 'mistyped.invalid' is not known"
        in refusal("mistyped.invalid:6379", monkeypatch).problem
    )


@pytest.mark.parametrize("address", ["head", "head:port", ":6379", "head:0", "head:99999"])
def test_an_address_that_is_none(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    error = refusal(address, monkeypatch)
    assert "no address of a Ray cluster" in error.problem
    assert "HEAD:6379" in error.fix


def test_the_address_for_jobs_is_another(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "kdscale submit" in refusal("http://head:8265", monkeypatch).fix


def test_something_else_listens_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray_session, "_ANSWER_SECONDS", 0.5)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        error = refusal(f"127.0.0.1:{silent.getsockname()[1]}", monkeypatch)
    assert "has not answered as Ray" in error.problem


def test_all_attempts_take_less_than_a_minute() -> None:
    longest = ray_session._RETRY_SECONDS + 1 + ray_session._CONNECT_SECONDS
    assert longest + ray_session._ANSWER_SECONDS < 60


NOT_STARTED = """
from kdscale.workers.ray_session import ray_session
with ray_session():
    pass
"""


def test_a_ray_that_does_not_start_here(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    env = {**os.environ, "RAY_TMPDIR": str(tmp_path / "file" / "ray"), "RAY_ADDRESS": ""}
    done = subprocess.run(
        [sys.executable, "-c", NOT_STARTED], capture_output=True, text=True, env=env, check=False
    )
    assert "KdscaleError: Ray did not start" in done.stderr
    assert str(tmp_path / "file") in done.stderr


def test_what_ray_says_of_its_start_is_passed_on() -> None:
    said = Exception("The current node timed out during startup. This could happen.")
    error = ray_session._not_started(said, "")
    assert "The current node timed out during startup" in error.problem
    assert "session_latest/logs" in error.fix
    joined = ray_session._not_started(RuntimeError("Version mismatch: Ray 2.9"), "head:6379")
    assert "RAY_ADDRESS=head:6379: Version mismatch: Ray 2.9" in joined.problem
