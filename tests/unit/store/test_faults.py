"""What a store does when the network, the server or its own process fails."""

import os
import signal
import socket
import subprocess
import sys
import threading
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from kdscale.errors import KdscaleError
from kdscale.store import Store, open_store
from kdscale.store.connection import Connection
from kdscale.store.remote import RemoteStore
from kdscale.store.retry import Retry
from tests.proxy import Fault, FaultProxy
from tests.s3 import S3Server, free_ports


@pytest.fixture(params=["fsspec", "obstore"])
def backend(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Which client the stores of the test open."""
    monkeypatch.setenv("KDSCALE_STORE", request.param)
    name: str = request.param
    return name


@contextmanager
def store_behind(
    server: S3Server, monkeypatch: pytest.MonkeyPatch, method: str, faults: list[Fault]
) -> Iterator[tuple[Store, FaultProxy]]:
    """Return a store whose requests of `method` meet `faults`, and the proxy that counts them."""
    upstream = server.env["AWS_ENDPOINT_URL"].removeprefix("http://")
    with FaultProxy(upstream, method, faults) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.endpoint)
        yield open_store(f"{server.url}/{uuid.uuid4().hex}"), proxy


@pytest.mark.s3
@pytest.mark.usefixtures("backend")
def test_a_lost_answer_to_my_own_commit_is_a_success(
    s3_env: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    with store_behind(s3_env, monkeypatch, "PUT", ["lose_answer"]) as (store, proxy):
        assert store.put_if_absent("commit", b"mine") is True
        assert proxy.requests == ["PUT", "PUT", "GET"]
        assert store.get("commit") == b"mine"


@pytest.mark.s3
@pytest.mark.usefixtures("backend")
def test_a_lost_answer_does_not_hide_another_writer(
    s3_env: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    with store_behind(s3_env, monkeypatch, "PUT", ["lose_answer"]) as (store, proxy):
        key = f"{store.url.removeprefix('s3://kdscale/')}/commit"
        s3_env.client().put_object(Bucket="kdscale", Key=key, Body=b"theirs")
        assert store.put_if_absent("commit", b"mine") is False
        assert proxy.requests == ["PUT", "PUT", "GET"]
        assert store.get("commit") == b"theirs"


@pytest.mark.s3
@pytest.mark.usefixtures("backend")
@pytest.mark.parametrize("fault", ["lose_answer", "drop", "slow_down"])
def test_a_put_survives_what_passes(
    s3_env: S3Server, monkeypatch: pytest.MonkeyPatch, fault: Fault
) -> None:
    with store_behind(s3_env, monkeypatch, "PUT", [fault, fault]) as (store, proxy):
        data = os.urandom(300_000)
        store.put("object", data)
        assert proxy.requests == ["PUT"] * 3
        assert store.get("object") == data


@pytest.mark.s3
@pytest.mark.usefixtures("backend")
@pytest.mark.parametrize("fault", ["half_body", "drop", "slow_down"])
def test_a_read_survives_what_passes(
    s3_env: S3Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, fault: Fault
) -> None:
    with store_behind(s3_env, monkeypatch, "GET", [fault] * 3) as (store, proxy):
        data = os.urandom(300_000)
        store.put("object", data)
        assert store.get("object") == data
        assert proxy.requests == ["PUT", "GET", "GET", "GET", "GET"]
        proxy.faults += [fault, fault]
        assert store.get_range("object", 1000, 200_000) == data[1000:201_000]
        proxy.faults += [fault, fault]
        spans = [(0, 100), (100_000, 100_000), (299_000, 1000)]
        assert store.get_ranges("object", spans) == [data[a : a + n] for a, n in spans]
        proxy.faults += [fault]
        store.get_file("object", tmp_path / "file")
        assert (tmp_path / "file").read_bytes() == data
        assert proxy.faults == []


@pytest.mark.s3
@pytest.mark.usefixtures("backend")
def test_an_outage_is_waited_out(s3_server: S3Server, s3_env: S3Server) -> None:
    store = open_store(f"{s3_server.url}/{uuid.uuid4().hex}")
    assert isinstance(store, RemoteStore)
    store.put("before", b"1")
    asked = threading.Event()

    def pause(_: float) -> None:
        # The first failed attempt brings the server back; the policy's own pauses are kept.
        if not asked.is_set():
            asked.set()
            s3_server.start()

    s3_server.stop()
    patient = replace(store, retry=Retry(sleep=pause))
    try:
        patient.put("during", b"2")
    finally:
        if not asked.is_set():
            s3_server.start()
    assert asked.is_set()
    assert store.list() == ["before", "during"]
    assert store.get("before") + store.get("during") == b"12"


def problem_of(url: str) -> KdscaleError:
    with pytest.raises(KdscaleError) as caught:
        open_store(url).check()
    return caught.value


@pytest.mark.s3
@pytest.mark.usefixtures("backend")
def test_check_names_a_missing_bucket(s3_env: S3Server) -> None:
    error = problem_of("s3://no-such-bucket/runs")
    assert "s3://no-such-bucket/runs" in error.problem
    assert "does not exist" in error.problem
    assert "Create the bucket" in error.fix


@pytest.mark.s3
@pytest.mark.usefixtures("backend")
def test_check_names_wrong_credentials_without_showing_them(
    s3_env: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hunter2-and-more")
    error = problem_of(s3_env.url)
    assert "access was denied" in error.problem
    assert "SignatureDoesNotMatch" in error.problem
    assert "hunter2" not in str(error)


@pytest.mark.s3
@pytest.mark.usefixtures("backend")
def test_check_names_missing_credentials(
    s3_env: S3Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    # Nor in the home of whoever runs the tests.
    for name in ("AWS_SHARED_CREDENTIALS_FILE", "AWS_CONFIG_FILE"):
        monkeypatch.setenv(name, str(tmp_path / "none"))
    error = problem_of(s3_env.url)
    assert "no credentials were found" in error.problem
    assert "AWS_ACCESS_KEY_ID" in error.fix


def use_endpoint(monkeypatch: pytest.MonkeyPatch, endpoint: str) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "id")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hunter2")
    monkeypatch.setenv("AWS_REGION", "us-east-1")


@pytest.mark.usefixtures("backend")
def test_check_names_a_refused_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    (port,) = free_ports(1)
    use_endpoint(monkeypatch, f"http://user:hunter2@127.0.0.1:{port}")
    error = problem_of("s3://bucket")
    assert f"the endpoint http://***@127.0.0.1:{port} does not answer" in error.problem
    assert "AWS_ENDPOINT_URL" in error.fix
    assert "hunter2" not in str(error)


@pytest.mark.usefixtures("backend")
def test_a_silent_endpoint_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        use_endpoint(monkeypatch, f"http://127.0.0.1:{silent.getsockname()[1]}")
        quick = RemoteStore(
            "s3://bucket", Connection("s3://bucket", read_timeout=0.2), Retry(deadline=0)
        )
        with pytest.raises(OSError, match=r"put s3://bucket/object: .*[Tt]imeout"):
            quick.put("object", b"x")


WITHOUT_S3FS = """
import os, sys
os.environ["KDSCALE_STORE"] = "fsspec"
sys.modules["s3fs"] = None  # What the import of a missing package meets.
from kdscale.store import open_store
open_store("s3://bucket").check()
"""


def test_check_names_the_extra_to_install() -> None:
    command = [sys.executable, "-c", WITHOUT_S3FS]
    result = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert result.returncode == 1
    assert "KdscaleError: The store s3://bucket needs a package" in result.stderr
    assert result.stderr.endswith("Fix: pip install 'kdscale[s3]'\n")


def test_check_names_a_folder_that_cannot_be(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    error = problem_of(str(tmp_path / "file" / "store"))
    assert "Not a directory" in error.problem
    assert str(tmp_path / "file" / "store") in error.fix


def test_a_password_in_the_url_is_never_shown() -> None:
    (port,) = free_ports(1)
    url = f"ftp://user:hunter2@127.0.0.1:{port}/folder"
    store = open_store(url)
    assert store.url == url
    assert repr(store) == f"RemoteStore('ftp://***@127.0.0.1:{port}/folder')"
    assert "hunter2" not in str(problem_of(url))


KILLED_WRITER = """
import os, signal, sys
from kdscale.store import open_store
store = open_store(sys.argv[1])
def die(*_):
    print("dying", flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
setattr(os, sys.argv[3], die)
getattr(store, sys.argv[2])("object", b"new" * 100_000)
"""


@pytest.mark.parametrize(
    ("verb", "where"),
    [("put", "fsync"), ("put", "replace"), ("put_if_absent", "fsync"), ("put_if_absent", "link")],
)
def test_a_writer_killed_in_the_middle_leaves_nothing_to_see(
    tmp_path: Path, verb: str, where: str
) -> None:
    store = open_store(str(tmp_path))
    command = [sys.executable, "-c", KILLED_WRITER, str(tmp_path), verb, where]
    result = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (result.returncode, result.stdout) == (-signal.SIGKILL, "dying\n")
    assert len(list(tmp_path.iterdir())) == 1  # The temporary file: it did die in the middle.
    assert store.list() == []
    assert not store.exists("object")
    assert store.put_if_absent("object", b"next") is True


TRUNCATED_WRITER = """
import resource, signal, sys
from kdscale.store import open_store
signal.signal(signal.SIGXFSZ, signal.SIG_DFL if sys.argv[2] == "die" else signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
open_store(sys.argv[1]).put("object", b"new" * 100_000)
"""


@pytest.mark.parametrize(("end", "status", "left"), [("die", -signal.SIGXFSZ, 2), ("raise", 1, 1)])
def test_a_writer_stopped_after_half_the_bytes_changes_nothing(
    tmp_path: Path, end: str, status: int, left: int
) -> None:
    store = open_store(str(tmp_path))
    store.put("object", b"old")
    command = [sys.executable, "-c", TRUNCATED_WRITER, str(tmp_path), end]
    result = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert result.returncode == status, result.stderr
    assert len(list(tmp_path.iterdir())) == left
    assert store.list() == ["object"]
    assert store.get("object") == b"old"
