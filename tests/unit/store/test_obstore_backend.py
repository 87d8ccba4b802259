"""When obstore is the client, what it makes of errors, and what it sends to GCS and Azure."""

import itertools
import json
import logging
import multiprocessing
import os
import pickle
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

from kdscale.store import Store, obstore_backend, open_store
from kdscale.store.fsspec_backend import FsspecBackend
from kdscale.store.obstore_backend import HTTPStatusError, ObstoreBackend
from kdscale.store.redact import redact
from kdscale.store.remote import RemoteStore
from kdscale.store.retry import Retry, http_status, is_transient
from tests.proxy import FaultProxy
from tests.s3 import S3Server

MiB = 2**20


def client_of(store: Store) -> type:
    assert isinstance(store, RemoteStore)
    return type(store.connection.backend())


def fresh(server: S3Server) -> Store:
    return open_store(f"{server.url}/{uuid.uuid4().hex}")


@pytest.mark.s3
def test_s3_is_read_by_obstore_unless_fsspec_is_asked_for(
    s3_env: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert client_of(fresh(s3_env)) is ObstoreBackend
    monkeypatch.setenv("KDSCALE_STORE", "fsspec")
    assert client_of(fresh(s3_env)) is FsspecBackend
    monkeypatch.delenv("KDSCALE_STORE")
    assert client_of(open_store("memory://folder")) is FsspecBackend


PROFILES = """
[keys]
aws_access_key_id = {AWS_ACCESS_KEY_ID}
aws_secret_access_key = {AWS_SECRET_ACCESS_KEY}
[elsewhere]
aws_access_key_id = {AWS_ACCESS_KEY_ID}
aws_secret_access_key = {AWS_SECRET_ACCESS_KEY}
endpoint_url = {AWS_ENDPOINT_URL}
"""


@pytest.mark.s3
def test_profiles_are_botocores_to_read(
    s3_env: S3Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "credentials").write_text(PROFILES.format(**s3_env.env))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    monkeypatch.setenv("AWS_PROFILE", "keys")
    store = fresh(s3_env)
    store.put("object", b"x")
    assert client_of(store) is ObstoreBackend
    # What only botocore understands is left to it: here the server's own address.
    monkeypatch.setenv("AWS_PROFILE", "elsewhere")
    monkeypatch.delenv("AWS_ENDPOINT_URL")
    copy = pickle.loads(pickle.dumps(store))
    assert copy.get("object") == b"x"
    assert client_of(copy) is FsspecBackend


def test_amazon_without_a_known_region_is_left_to_botocore(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "id")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hunter2")
    for name in ("AWS_SHARED_CREDENTIALS_FILE", "AWS_CONFIG_FILE"):
        monkeypatch.setenv(name, str(tmp_path / "none"))
    assert client_of(open_store("s3://bucket/folder")) is FsspecBackend
    monkeypatch.setenv("AWS_DEFAULT_REGION", "eu-west-1")
    assert client_of(open_store("s3://bucket/folder")) is ObstoreBackend


def names_client(store: Store) -> None:
    store.put("child", client_of(store).__name__.encode())


@pytest.mark.s3
@pytest.mark.parametrize(
    ("method", "client"), [("fork", "FsspecBackend"), ("spawn", "ObstoreBackend")]
)
def test_a_fork_of_a_process_that_used_obstore_uses_fsspec(
    s3_env: S3Server, method: str, client: str
) -> None:
    store = fresh(s3_env)
    store.put("parent", b"x")
    assert client_of(store) is ObstoreBackend
    context: Any = multiprocessing.get_context(method)
    process = context.Process(target=names_client, args=(store,))
    process.start()
    process.join(60)
    if process.exitcode is None:
        process.kill()
    assert process.exitcode == 0
    assert store.get("child") == client.encode()


@pytest.mark.s3
def test_requests_are_as_few_as_can_be(
    s3_env: S3Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(obstore_backend, "_MULTIPART", 12 * MiB)
    monkeypatch.setattr(obstore_backend, "_PART", 5 * MiB)
    upstream = s3_env.env["AWS_ENDPOINT_URL"].removeprefix("http://")
    with FaultProxy(upstream, "PUT", []) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.endpoint)
        store = fresh(s3_env)

        def requests() -> list[str]:
            found = sorted(proxy.requests)
            proxy.requests.clear()
            return found

        store.put("whole", bytes(12 * MiB))
        assert requests() == ["PUT"]
        data = os.urandom(13 * MiB)
        assert store.put_if_absent("large", data) is True
        assert requests() == ["PUT"]  # A create in parts would not be one decision.
        store.put("parts", data)
        assert requests() == ["POST", "POST", "PUT", "PUT", "PUT"]
        (tmp_path / "source").write_bytes(data)
        store.put_file("file", tmp_path / "source")
        assert requests() == ["POST", "POST", "PUT", "PUT", "PUT"]
        for key in ("large", "parts", "file"):
            assert store.get(key) == data
            assert requests() == ["GET"]
        store.get_range("parts", 5, 10)
        store.size("parts")
        store.delete("parts")
        store.list()
        assert requests() == ["DELETE", "GET", "GET", "HEAD"]


@pytest.mark.s3
def test_folders_of_consoles_are_no_objects(s3_env: S3Server) -> None:
    store = fresh(s3_env)
    prefix = store.url.removeprefix("s3://kdscale/")
    for key in ("", "empty/", "full/"):
        s3_env.client().put_object(Bucket="kdscale", Key=f"{prefix}/{key}", Body=b"")
    store.put("full/object", b"")
    assert store.list() == ["full/object"]
    assert not store.exists("empty")


def test_credentials_are_shown_nowhere(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, "kdscale")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://user:hunter2@127.0.0.1:1")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "id")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hunter3")
    monkeypatch.setenv("AWS_REGION", "us-east-1")
    store = open_store("s3://bucket/folder")
    assert isinstance(store, RemoteStore)
    # A tick a reading: two attempts, however long they take.
    retry = Retry(deadline=1.5, sleep=lambda _: None, clock=itertools.count().__next__)
    with pytest.raises(OSError, match="Connection refused") as caught:
        RemoteStore(store.url, store.connection, retry).put("key", b"x")
    error: BaseException | None = caught.value
    shown = [caplog.text, repr(store), repr(store.connection), repr(store.connection.backend())]
    shown.append(repr(pickle.dumps(store)))
    while error is not None:
        shown.append(f"{error!r} {error}")
        error = error.__cause__
    assert "trying again" in caplog.text
    assert "hunter" not in "\n".join(shown)
    other = open_store("ftp://user:hunter2@host/folder")
    assert isinstance(other, RemoteStore)
    assert repr(other.connection) == "Connection('ftp://***@host/folder', 30.0)"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("GET https://a.net/c/k?sv=1&sig=hunter2%3D&se=3 failed", "sv=1&sig=***&se=3 failed"),
        ("https://h/k?X-Amz-Signature=hunter2", "https://h/k?X-Amz-Signature=***"),
        ("'https://h/k?x=1&x-goog-signature=hunter2'", "x=1&x-goog-signature=***'"),
        ("https://user:hunter2@host/a", "https://***@host/a"),
        ("abfs://container@account/key?design=1", "abfs://container@account/key?design=1"),
    ],
)
def test_redaction_of_urls(text: str, shown: str) -> None:
    assert redact(text).endswith(shown)
    assert "hunter2" not in redact(text)


def answer(status: str, body: str) -> str:
    """Return what obstore says of an answer."""
    return (
        f"Generic S3 error: Error performing PUT http://127.0.0.1:1/b/k?sig=abc in 0.9ms - Server "
        f"returned non-2xx status code: {status}: {body}\n\nDebug source:\nGeneric {{ status }}"
    )


@pytest.mark.parametrize(
    ("status", "code", "transient"),
    [
        ("500 Internal Server Error", "InternalError", True),
        ("503 Slow Down", "SlowDown", True),
        ("409 Conflict", "OperationAborted", True),
        ("400 Bad Request", "RequestTimeout", True),
        ("400 Bad Request", "InvalidArgument", False),
        ("403 Forbidden", "AccessDenied", False),
        ("416 Range Not Satisfiable", "InvalidRange", False),
        ("501 Not Implemented", "NotImplemented", False),
    ],
)
def test_answers_keep_their_status_and_code(status: str, code: str, transient: bool) -> None:
    body = f"<Error><Code>{code}</Code><Message>Said so.</Message><Secret>x</Secret></Error>"
    error = obstore_backend._translated(answer(status, body))
    assert isinstance(error, HTTPStatusError)
    assert http_status(error) == int(status[:3])
    assert is_transient(error) is transient
    text = "Generic S3 error: PUT: Server returned non-2xx status code"
    assert str(error) == f"{text}: {status}: {code}: Said so."


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("Timeout", TimeoutError),
        ("Connect", ConnectionError),
        ("Request", ConnectionError),
        ("Interrupted", ConnectionError),
        ("Decode", OSError),
    ],
)
def test_network_failures_are_pythons_own(kind: str, expected: type[OSError]) -> None:
    debug = f'HttpError {{\n    kind: {kind},\n    source: Os {{ message: "Cut off" }} }}'
    error = obstore_backend._translated(
        f"HTTP error: error sending request\n\nDebug source:\n{debug}"
    )
    assert type(error) is expected
    assert is_transient(error) is (expected is not OSError)
    assert str(error) == "HTTP error: error sending request: Cut off"


class Recorder(BaseHTTPRequestHandler):
    """An empty cloud with one taken key. It keeps what it was asked, and gives out tokens."""

    asked: list[tuple[str, str, dict[str, str]]] = []
    refusal = b""

    def do_POST(self) -> None:
        self._answer(200, json.dumps({"access_token": "T", "expires_in": 3600}).encode())

    def do_GET(self) -> None:
        self._answer(200, b"theirs")

    def do_PUT(self) -> None:
        if "taken" not in self.path:
            self._answer(201, b"")
        else:
            self._answer(int(self.refusal[:3]), self.refusal[4:])

    def _answer(self, status: int, body: bytes) -> None:
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        headers = {name.lower(): value for name, value in self.headers.items()}
        self.asked.append((self.command, self.path, headers))
        self.send_response(status)
        for name, value in (
            ("Content-Length", str(len(body))),
            ("ETag", '"e"'),
            ("Last-Modified", "Mon, 23 Nov 2026 12:00:00 GMT"),
        ):
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def recorder(refusal: bytes) -> Iterator[tuple[str, list[tuple[str, str, dict[str, str]]]]]:
    """Its endpoint, and what it was asked: method, path and headers."""
    kind = type("Cloud", (Recorder,), {"asked": [], "refusal": refusal})
    with ThreadingHTTPServer(("127.0.0.1", 0), kind) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}", kind.asked  # type: ignore[attr-defined] # Of a class made at run time.
        server.shutdown()


def commit_twice(store: Store) -> None:
    assert client_of(store) is ObstoreBackend
    assert store.put_if_absent("a/free", b"mine") is True
    assert store.put_if_absent("a/taken", b"mine") is False
    assert store.put_if_absent("a/taken", b"theirs") is True


def test_azure_creates_on_condition(monkeypatch: pytest.MonkeyPatch) -> None:
    refusal = b"409 <Error><Code>BlobAlreadyExists</Code></Error>"
    with recorder(refusal) as (endpoint, asked):
        monkeypatch.setenv("AZURE_STORAGE_ENDPOINT", endpoint)
        monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_NAME", "account")
        monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_KEY", "aHVudGVyMg==")
        commit_twice(open_store("abfs://container/folder"))
    puts = [(path, headers) for method, path, headers in asked if method == "PUT"]
    assert [path for path, _ in puts] == [
        "/container/folder/a/free",
        "/container/folder/a/taken",
        "/container/folder/a/taken",
    ]
    assert all(headers["if-none-match"] == "*" for _, headers in puts)
    assert all(headers["authorization"].startswith("SharedKey account:") for _, headers in puts)
    assert [method for method, *_ in asked] == ["PUT", "PUT", "GET", "PUT", "GET"]


def service_account(token_uri: str) -> str:
    """Return a key file of Google's that nobody else knows."""
    rsa = pytest.importorskip("cryptography.hazmat.primitives.asymmetric.rsa")
    serialization = pytest.importorskip("cryptography.hazmat.primitives.serialization")
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    pem = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    return json.dumps(
        {
            "type": "service_account",
            "project_id": "project",
            "private_key": pem.decode(),
            "client_email": "kdscale@project.iam.gserviceaccount.com",
            "token_uri": token_uri,
        }
    )


def test_gcs_creates_on_condition(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    pytest.importorskip("google.auth")
    with recorder(b"412 <Error><Code>PreconditionFailed</Code></Error>") as (endpoint, asked):
        (tmp_path / "account.json").write_text(service_account(f"{endpoint}/token"))
        monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(tmp_path / "account.json"))
        monkeypatch.setenv("GOOGLE_BASE_URL", endpoint)
        commit_twice(open_store("gs://bucket/folder"))
    puts = [(path, headers) for method, path, headers in asked if method == "PUT"]
    assert {path for path, _ in puts} == {"/bucket/folder%2Fa%2Ffree", "/bucket/folder%2Fa%2Ftaken"}
    assert all(headers["x-goog-if-generation-match"] == "0" for _, headers in puts)
    assert all(headers["authorization"] == "Bearer T" for _, headers in puts)
    assert [method for method, *_ in asked] == ["POST", "PUT", "PUT", "GET", "PUT", "GET"]


@pytest.mark.parametrize(
    ("url", "variables"),
    [
        ("abfs://container/folder", {}),
        ("abfs://container/folder", {"AZURE_STORAGE_ACCOUNT_NAME": "account"}),
        ("gs://bucket/folder", {"STORAGE_EMULATOR_HOST": "http://127.0.0.1:1"}),
    ],
)
def test_credentials_that_obstore_does_not_know_are_left_to_fsspec(
    url: str, variables: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert obstore_backend.open_obstore(url, 60) is None
