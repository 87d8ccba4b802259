"""The fast client of S3, GCS and Azure: obstore, Rust's object_store.

Used directly and never through its fsspec adapter, which ignores mode="create" and overwrites.
Its own retries are off. Its errors carry status and cause only in their text, so they are read
here and raised again as what `retry` knows.
"""

import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from pathlib import Path
from typing import Any

from obstore.exceptions import AlreadyExistsError, BaseError
from obstore.store import AzureStore, GCSStore, S3Store

from kdscale.store.aws import CONNECT_TIMEOUT, obstore_s3_options
from kdscale.store.store import Entry

Client = S3Store | GCSStore | AzureStore
# read_timeout in seconds -> client. It is how long the next bytes of an answer may take, and the
# time from a request's first byte to the first of its answer.
Maker = Callable[[float], Client]

_NO_RETRIES: Any = {"max_retries": 0}
_GCS_SCOPE = "https://www.googleapis.com/auth/devstorage.read_write"

_MULTIPART = 64 * 2**20  # bytes; what is larger goes in parts, side by side
_PART = 16 * 2**20
_MOST_PARTS = 10_000  # S3 takes no more
_PARTS_AT_ONCE = 4
_SMALL = 2**20  # bytes
_SLOWEST_UPLOAD = 2**20  # bytes a second
_ONE_PIECE = 2**40  # bytes, more than any object read whole
_STREAM = 8 * 2**20  # bytes held while a file is fetched


def open_obstore(url: str, read_timeout: float) -> "ObstoreBackend | None":
    """Return the client of `url`; None where obstore lacks the protocol or the credentials."""
    make = client_maker(url)
    return None if make is None else ObstoreBackend(make, read_timeout)


class ObstoreBackend:
    """See Backend. read_timeout: seconds of a server's silence."""

    def __init__(self, make: Maker, read_timeout: float) -> None:
        self._client = make(read_timeout)
        # obstore counts a body's way out as silence of the server, so large ones get the time that
        # they take at the slowest rate.
        self._slow_upload_client = make(read_timeout + _MULTIPART / _SLOWEST_UPLOAD)

    def read(self, url: str) -> bytes:
        """See `Backend.read`."""
        return self._body(url)

    def read_range(self, url: str, start: int, length: int) -> bytes:
        """See `Backend.read_range`."""
        return self._body(url, {"range": (start, start + length)})

    def write(self, url: str, data: bytes) -> None:
        """See `Backend.write`."""
        self._put(url, data, len(data))

    def create(self, url: str, data: bytes) -> bool:
        """See `Backend.create`."""
        with _plain_errors():
            try:
                self._sender(len(data)).put(_key(url), data, mode="create", use_multipart=False)
            except AlreadyExistsError:
                # Also S3's 409, "another create is in flight": what was refused is read back, and
                # tried again where nothing is found.
                return False
            return True

    def size(self, url: str) -> int:
        """See `Backend.size`."""
        with _plain_errors():
            return self._client.head(_key(url))["size"]

    def remove(self, url: str) -> None:
        """See `Backend.remove`."""
        with _plain_errors(), suppress(FileNotFoundError):
            self._client.delete(_key(url))

    def find(self, url: str) -> list[Entry]:
        """See `Backend.find`."""
        folder = f"{_key(url)}/".removeprefix("/")
        with _plain_errors():
            found = self._client.list(folder or None, chunk_size=1000).collect()
        entries = [
            Entry(path.removeprefix(folder), meta["size"], meta["last_modified"].timestamp())
            for meta in found
            if (path := meta["path"]).startswith(folder)
        ]
        return [entry for entry in entries if entry.size or self._is_object(f"{url}/{entry.key}")]

    def send_file(self, url: str, path: Path) -> None:
        """See `Backend.send_file`."""
        self._put(url, path, path.stat().st_size)

    def fetch_file(self, url: str, path: Path) -> None:
        """See `Backend.fetch_file`."""
        with _plain_errors(), path.open("wb") as file:
            for chunk in self._client.get(_key(url)).stream(_STREAM):
                file.write(chunk)

    def _body(self, url: str, options: Any = None) -> bytes:
        """Return a stream's one piece.

        It is copied once on its way from Rust, `bytes` copies twice.
        """
        with _plain_errors():
            return b"".join(self._client.get(_key(url), options=options).stream(_ONE_PIECE))

    def _put(self, url: str, source: bytes | Path, size: int) -> None:
        with _plain_errors():
            self._sender(size).put(
                _key(url),
                source,
                use_multipart=size > _MULTIPART,
                chunk_size=max(_PART, -(-size // _MOST_PARTS)),
                max_concurrency=_PARTS_AT_ONCE,
            )

    def _sender(self, size: int) -> Client:
        return self._client if size <= _SMALL else self._slow_upload_client

    def _is_object(self, url: str) -> bool:
        """Return whether `url` is an object, and no "folder" that some consoles make.

        Those are empty objects whose key ends in a slash: obstore lists them without the
        slash.
        """
        try:
            self.size(url)
        except FileNotFoundError:
            return False
        return True


class HTTPStatusError(OSError):
    """The server's refusal; `response` has botocore's layout, which `retry` reads."""

    def __init__(self, text: str, status: int, code: str) -> None:
        super().__init__(text)
        self.response = {
            "Error": {"Code": code},
            "ResponseMetadata": {"HTTPStatusCode": status},
        }


def _key(url: str) -> str:
    """Return what follows the bucket; "" for the bucket itself."""
    return url.partition("://")[2].partition("/")[2]


@contextmanager
def _plain_errors() -> Iterator[None]:
    """Errors of obstore as Python's own, with the cause in a line and no URL in it.

    Their causes are cut off: each is the same error again with a page of Rust's debug output.
    """
    try:
        yield
    except FileNotFoundError as error:
        if "NoSuchBucket" in str(error):
            raise _translated(str(error)) from None
        raise FileNotFoundError(_explain(str(error))) from None
    except BaseError as error:
        raise _translated(str(error)) from None
    except BaseException as error:
        # Rust's own failure, which derives from no Exception: of a URL that it cannot parse.
        if type(error).__name__ != "PanicException":
            raise
        raise OSError(_explain(str(error))) from None


def _translated(text: str) -> OSError:
    status = re.search(r"status code: (\d+)", text)
    if status:
        code = re.search(r"<Code>([^<]*)", text)
        return HTTPStatusError(_explain(text), int(status[1]), code[1] if code else "")
    kind = re.search(r"HttpError \{\s*kind: (\w+)", text)
    if kind and kind[1] == "Timeout":
        return TimeoutError(_explain(text))
    if kind and kind[1] in ("Connect", "Request", "Interrupted"):
        return ConnectionError(_explain(text))
    return OSError(_explain(text))


def _explain(text: str) -> str:
    """Return the server's code and message, or obstore's first paragraph and innermost cause."""
    first, _, debug = text.partition("\n\nDebug source:")
    first = re.sub(r"Error performing (\w+) .*? in [\d.]+\S+ - ", r"\1: ", first)
    status, xml, _ = first.partition(": <")
    if xml:
        said = re.findall(r"<(?:Code|Message)>([^<]*)", first)
        return ": ".join([status, *said])
    causes = re.findall(r'(?:message|error): "([^"]*)"', debug)
    return ": ".join([first.strip(), *causes[-1:]])


def client_maker(url: str) -> Maker | None:
    """Return a maker of clients for the bucket of `url`; None where fsspec has to do it."""
    protocol, _, rest = url.partition("://")
    find = _PROVIDERS.get(protocol)
    return find(rest.partition("/")[0]) if find else None


def _s3(bucket: str) -> Maker | None:
    options = obstore_s3_options(bucket)
    if options is None:
        return None
    return lambda read_timeout: S3Store(
        bucket,
        client_options=_http(read_timeout, options.get("endpoint")),
        retry_config=_NO_RETRIES,
        **options,
    )


def _gcs(bucket: str) -> Maker | None:
    if os.environ.get("STORAGE_EMULATOR_HOST"):
        return None
    try:
        import google.auth
        from google.auth.exceptions import DefaultCredentialsError
        from obstore.auth.google import GoogleCredentialProvider
    except ImportError:
        return None
    try:
        credentials, _ = google.auth.default(scopes=[_GCS_SCOPE])
    except DefaultCredentialsError:
        return None
    return lambda read_timeout: GCSStore(
        bucket,
        client_options=_http(read_timeout, os.environ.get("GOOGLE_BASE_URL")),
        retry_config=_NO_RETRIES,
        credential_provider=GoogleCredentialProvider(credentials),
    )


def _azure(container: str) -> Maker | None:
    """Return the maker for container[@account.host], with the environment's credentials."""
    name, _, host = container.partition("@")
    account = host.partition(".")[0] or os.environ.get("AZURE_STORAGE_ACCOUNT_NAME")
    options = _azure_credentials()
    if not account or options is None or os.environ.get("AZURE_STORAGE_CONNECTION_STRING"):
        return None
    return lambda read_timeout: AzureStore(
        name,
        account_name=account,
        client_options=_http(read_timeout, os.environ.get("AZURE_STORAGE_ENDPOINT")),
        retry_config=_NO_RETRIES,
        **options,
    )


def _azure_credentials() -> Any:
    """Arguments of AzureStore, in adlfs's order; None where it has to look further itself."""
    value = {
        argument: os.environ.get(f"AZURE_STORAGE_{argument.upper()}")
        for argument in ("account_key", "sas_token", "client_id", "client_secret", "tenant_id")
    }
    if value["account_key"]:
        return {"account_key": value["account_key"]}
    if value["sas_token"]:
        return {"sas_key": value["sas_token"]}
    service = {name: value[name] for name in ("client_id", "client_secret", "tenant_id")}
    return service if all(service.values()) else None


def _http(read_timeout: float, endpoint: str | None) -> Any:
    return {
        "connect_timeout": timedelta(seconds=CONNECT_TIMEOUT),
        "read_timeout": timedelta(seconds=read_timeout),
        # 30 s by default, for the whole of a request however much it carries.
        "timeout": timedelta(days=1),
        "allow_http": bool(endpoint and endpoint.startswith("http://")),
    }


_PROVIDERS: dict[str, Callable[[str], Maker | None]] = {
    "s3": _s3,
    "s3a": _s3,
    "gs": _gcs,
    "gcs": _gcs,
    "abfs": _azure,
    "abfss": _azure,
    "az": _azure,
}
