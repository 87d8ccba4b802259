"""Whatever goes wrong with a place for data is said in one way, with what to do, and soon."""

import errno
import os
import pickle
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from huggingface_hub.errors import OfflineModeIsEnabled
from ray.exceptions import RayTaskError

from kdscale.errors import KdscaleError, StoreError
from kdscale.store import Store, connection, explain, explained, file_at, open_store
from kdscale.store.remote import RemoteStore
from kdscale.store.retry import Retry
from tests.s3 import S3Server, free_ports

USES: dict[str, Callable[[Store], object]] = {
    "get": lambda store: store.get("key"),
    "get_range": lambda store: store.get_range("key", 0, 4),
    "exists": lambda store: store.exists("key"),
    "size": lambda store: store.size("key"),
    "list": lambda store: store.list(),
    "put": lambda store: store.put("key", b"data"),
    "put_if_absent": lambda store: store.put_if_absent("key", b"data"),
    "delete": lambda store: store.delete("key"),
}


@pytest.fixture(params=["fsspec", "obstore"])
def backend(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let stores of the test open this client, with no bucket having answered yet."""
    monkeypatch.setenv("KDSCALE_STORE", request.param)
    monkeypatch.setattr(connection, "_answered", set())


def told(action: Callable[[], object]) -> KdscaleError:
    """Return what a user reads of the action's failure."""
    with pytest.raises(KdscaleError) as caught, explained():
        action()
    return caught.value


@pytest.mark.s3
@pytest.mark.usefixtures("backend")
@pytest.mark.parametrize("use", USES)
def test_a_bucket_that_is_not_there(s3_env: S3Server, use: str) -> None:
    if use == "delete":
        pytest.skip("S3 answers the deletion of nothing with yes")
    error = told(lambda: USES[use](open_store("s3://no-such-bucket/runs/1")))
    assert error.problem.startswith("s3://no-such-bucket/runs/1")
    assert "the bucket does not exist" in error.problem
    assert "correct its name" in error.fix


@pytest.mark.s3
@pytest.mark.usefixtures("backend")
@pytest.mark.parametrize("use", USES)
def test_a_wrong_secret(s3_env: S3Server, use: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hunter2-and-more")
    error = told(lambda: USES[use](open_store(f"{s3_env.url}/runs")))
    assert f"{s3_env.url}/runs" in error.problem
    assert "access was denied" in error.problem
    if use not in ("delete", "list"):
        assert "signature" in error.problem
    assert "Correct the credentials" in error.fix
    assert "hunter2" not in str(error)


@pytest.mark.s3
@pytest.mark.usefixtures("backend")
def test_a_key_that_is_not_there_is_no_failure(s3_env: S3Server) -> None:
    store = open_store(f"{s3_env.url}/nothing")
    assert not store.exists("key")
    assert store.list() == []
    with pytest.raises(FileNotFoundError):
        store.get("key")


@pytest.fixture
def credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "hunter2")
    monkeypatch.setenv("AWS_REGION", "us-east-1")


def counting(url: str) -> tuple[RemoteStore, list[float]]:
    """Return the store at `url`, and the pauses that its retries make, which take no time."""
    store, pauses = open_store(url), list[float]()
    assert isinstance(store, RemoteStore)
    clock: Iterator[float] = iter(range(0, 1000, 5))
    retry = Retry(sleep=pauses.append, clock=lambda: next(clock), jitter=lambda ceiling: 1.0)
    return replace(store, retry=retry), pauses


@pytest.mark.usefixtures("backend", "credentials")
def test_a_host_that_nobody_knows_is_given_up_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://mistyped.invalid:9000")
    store, pauses = counting("s3://bucket/runs")
    error = told(lambda: store.get("key"))
    assert "no name server knows the host of the endpoint http://mistyped.invalid" in error.problem
    assert "AWS_ENDPOINT_URL" in error.fix
    assert pauses == []


@pytest.mark.usefixtures("backend", "credentials")
def test_a_bucket_that_never_answered_is_given_up_in_half_a_minute(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (port,) = free_ports(1)
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{port}")
    store, pauses = counting("s3://bucket/runs")
    error = told(lambda: store.list())
    assert f"the endpoint http://127.0.0.1:{port} does not answer" in error.problem
    # The clock goes on by 5 seconds a look: as many as the time for first answers has.
    assert len(pauses) in (4, 5)
    # One that has answered before has an outage, which is waited for.
    store.connection.heard()
    pauses.clear()
    told(lambda: store.list())
    assert len(pauses) > 20


@pytest.mark.usefixtures("credentials")
def test_a_process_that_gets_a_store_knows_that_its_bucket_has_answered(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(connection, "_answered", set())
    store = open_store("s3://bucket/runs")
    assert isinstance(store, RemoteStore)
    for known in (False, True):
        data = pickle.dumps(store)
        monkeypatch.setattr(connection, "_answered", set())
        assert pickle.loads(data).connection.has_answered is known
        store.connection.heard()


@pytest.mark.usefixtures("backend", "credentials")
@pytest.mark.parametrize(
    "value", ["127.0.0.1:9000", "localhost", "s3://host", "http://", "http:/h"]
)
def test_an_endpoint_that_is_no_url(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", value)
    error = told(lambda: open_store("s3://bucket/runs").get("key"))
    assert f"AWS_ENDPOINT_URL is {value!r}" in error.problem


@pytest.mark.s3
@pytest.mark.usefixtures("backend")
def test_https_to_a_server_that_speaks_http(
    s3_env: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3_env.env["AWS_ENDPOINT_URL"].replace("http", "https"))
    store, _ = counting(f"{s3_env.url}/runs")
    error = told(lambda: store.get("key"))
    assert "https://127.0.0.1" in error.problem
    assert "AWS_ENDPOINT_URL" in error.fix or "https" in error.fix


@pytest.mark.parametrize(
    ("url", "meant"),
    [
        ("s3:/bucket/x", "Write s3://bucket/x"),
        ("s3:bucket/x", "Write s3://bucket/x"),
        ("s3//bucket/x", "Write s3://bucket/x"),
        ("S3:/bucket/x", "Write s3://bucket/x"),
        ("S3://bucket/x", "Write s3://bucket/x"),
        ("s4://bucket/x", "Write s3://bucket/x"),
        ("gcs3://bucket/x", "Write gcs://bucket/x"),
        ("s3:///bucket/x", "Write s3://bucket/x"),
        ("s3://", "Write s3://bucket/prefix"),
        ("htp://host/x", "Write http://host/x"),
        ("s3:/user:hunter2@bucket", "Write s3://***@bucket"),
        ("nowhere://bucket/x", "such as s3://bucket/prefix"),
    ],
)
def test_a_mistyped_protocol_is_no_folder(url: str, meant: str) -> None:
    with pytest.raises(KdscaleError) as caught:
        open_store(url)
    assert meant in caught.value.fix
    assert "hunter2" not in str(caught.value)


def test_paths_with_colons_are_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for path in ("./s3:/x", "run:3/x", "2024-01-01T10:00/x", "C:x", "runs//x"):
        assert open_store(path).local_path() == Path(os.path.abspath(path))


def test_a_file_is_found_by_its_path_or_url(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert file_at("a.txt") == (open_store("."), "a.txt")
    assert file_at("/a.txt") == (open_store("/"), "a.txt")
    assert file_at("memory://folder/a.txt") == (open_store("memory://folder"), "a.txt")
    for path in ("s3://bucket", "folder/"):
        with pytest.raises(KdscaleError, match="names no file"):
            file_at(path)


@pytest.fixture
def full_disk(tmp_path: Path) -> Iterator[Path]:
    """Yield a disk of 64 KiB, where the tests may mount one."""
    command = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(tmp_path)]
    if subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("only root may mount a disk")
    yield tmp_path
    subprocess.run(["umount", "--lazy", str(tmp_path)], check=True)


def test_a_disk_that_is_full(full_disk: Path) -> None:
    store = open_store(str(full_disk / "run"))
    store.put("small", b"fits")
    error = told(lambda: store.put("large", bytes(200_000)))
    assert error.problem.startswith(f"{full_disk}/run/large cannot be used: the disk is full")
    assert "Free space" in error.fix
    assert store.list() == ["small"]
    # Where a remote object has no room on this machine, that is not the store's fault.
    remote = open_store("memory://full-disk")
    remote.put("object", bytes(200_000))
    error = told(lambda: remote.get_file("object", full_disk / "copy"))
    assert error.problem.startswith(f"{full_disk}/copy cannot be used: the disk is full")


@pytest.mark.parametrize(
    ("number", "what"),
    [
        (errno.ENOSPC, "the disk is full"),
        (errno.EDQUOT, "the disk quota is used up"),
        (errno.EROFS, "the file system is read-only"),
        (errno.EACCES, "access was denied"),
        (errno.EIO, "the disk fails"),
        (errno.EMFILE, "this process has too many files open"),
        (errno.ESTALE, "the network mount is stale"),
    ],
)
def test_what_a_file_system_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, what: str
) -> None:
    def fail(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", fail)
    store = open_store(str(tmp_path))
    for use in ("put", "put_if_absent"):
        error = told(lambda: USES[use](store))  # noqa: B023
        assert error.problem.startswith(f"{tmp_path}/key cannot be used: {what}")
        assert error.fix
    with pytest.raises(KdscaleError, match=f"The store {tmp_path} cannot be used: {what}"):
        store.check()
    monkeypatch.undo()
    found = explain(OSError(number, os.strerror(number), "/data/file"))
    assert found is not None
    assert found.problem.startswith(f"/data/file cannot be used: {what}")
    assert explain(RuntimeError("wrapped")) is None


def test_a_folder_that_may_not_be_read_is_no_empty_one(tmp_path: Path) -> None:
    (tmp_path / "secret").mkdir()
    (tmp_path / "secret" / "file").write_text("x")
    (tmp_path / "secret").chmod(0)
    store, user = open_store(str(tmp_path / "secret")), os.geteuid()
    if user == 0:
        os.seteuid(65534)
    try:
        errors = [told(lambda use=use: USES[use](store)) for use in ("list", "get", "exists")]
    finally:
        os.seteuid(user)
        (tmp_path / "secret").chmod(0o700)
    for error in errors:
        assert "access was denied" in error.problem
        assert str(tmp_path) in error.problem


def test_a_file_where_a_folder_is_needed(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    for place in ("file", "file/below"):
        store = open_store(str(tmp_path / place))
        assert store.list() == []
        assert not store.exists("key")
        error = told(lambda: store.put("key", b""))  # noqa: B023
        assert "a file is where a folder is needed" in error.problem
        assert str(tmp_path / "file") in error.problem


def test_a_hub_that_is_out_of_reach_is_told() -> None:
    found = explain(OfflineModeIsEnabled("HF_HUB_OFFLINE=1 is set"))
    assert found is not None
    assert "The hub does not give what is asked" in found.problem


def test_errors_survive_pickles_and_rays_wrapping() -> None:
    error = StoreError("put x: cut", "x cannot be written.", "cut", "Mend it.", passes=True)
    again = pickle.loads(pickle.dumps(error))
    assert (str(again), again.problem, again.fix, again.passes) == (
        "put x: cut",
        "x cannot be written.",
        "Mend it.",
        True,
    )
    for cause in (error, KdscaleError("x cannot be written.", "Mend it.")):
        wrapped = RayTaskError("f", "Traceback", cause).as_instanceof_cause()
        found = explain(wrapped)
        assert type(found) is KdscaleError
        assert (found.problem, found.fix) == ("x cannot be written.", "Mend it.")
    chained = RuntimeError("a stage failed")
    chained.__cause__ = error
    assert explain(chained) is not None
    assert explain(ValueError("ours")) is None
