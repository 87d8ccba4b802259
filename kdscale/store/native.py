"""The fast client of S3, GCS and Azure: obstore, Rust's object_store.

Used directly and never through its fsspec adapter, which ignores mode="create" and overwrites.
Its own retries are off. Its errors carry status and cause only in their text, so they are read
here and raised again as what `retry` knows.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from obstore.exceptions import AlreadyExistsError, BaseError

from kdscale.store.clients import Client, Maker, client_maker
from kdscale.store.store import Entry

_MULTIPART = 64 * 2**20  # bytes; what is larger goes in parts, side by side
_PART = 16 * 2**20
_MOST_PARTS = 10_000  # S3 takes no more
_PARTS_AT_ONCE = 4
_SMALL = 2**20  # bytes
_SLOWEST_UPLOAD = 2**20  # bytes a second
_ONE_PIECE = 2**40  # bytes, more than any object read whole
_STREAM = 8 * 2**20  # bytes held while a file is fetched


def open_native(url: str, read_timeout: float) -> "NativeBackend | None":
    """The client of `url`; None where obstore does not know the protocol or the credentials."""
    make = client_maker(url)
    return None if make is None else NativeBackend(make, read_timeout)


class NativeBackend:
    """See Backend. read_timeout: seconds of a server's silence."""

    def __init__(self, make: Maker, read_timeout: float) -> None:
        self._client = make(read_timeout)
        # obstore counts a body's way out as silence of the server, so large ones get the time that
        # they take at the slowest rate.
        self._slow_upload_client = make(read_timeout + _MULTIPART / _SLOWEST_UPLOAD)

    def read(self, url: str) -> bytes:
        return self._body(url)

    def read_range(self, url: str, start: int, length: int) -> bytes:
        return self._body(url, {"range": (start, start + length)})

    def write(self, url: str, data: bytes) -> None:
        self._put(url, data, len(data))

    def create(self, url: str, data: bytes) -> bool:
        with _plain_errors():
            try:
                self._sender(len(data)).put(_key(url), data, mode="create", use_multipart=False)
            except AlreadyExistsError:
                # Also S3's 409, "another create is in flight": what was refused is read back, and
                # tried again where nothing is found.
                return False
            return True

    def size(self, url: str) -> int:
        with _plain_errors():
            return self._client.head(_key(url))["size"]

    def remove(self, url: str) -> None:
        with _plain_errors(), suppress(FileNotFoundError):
            self._client.delete(_key(url))

    def find(self, url: str) -> list[Entry]:
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
        self._put(url, path, path.stat().st_size)

    def fetch_file(self, url: str, path: Path) -> None:
        with _plain_errors(), path.open("wb") as file:
            for chunk in self._client.get(_key(url)).stream(_STREAM):
                file.write(chunk)

    def _body(self, url: str, options: Any = None) -> bytes:
        """A stream of one piece: it is copied once on its way from Rust, `bytes` copies twice."""
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
        """False for the "folders" that some consoles make, empty objects whose key ends in a slash:
        obstore lists them without the slash."""
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
    """What follows the bucket; "" for the bucket itself."""
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
    """The server's code and message, or obstore's first paragraph and the innermost cause."""
    first, _, debug = text.partition("\n\nDebug source:")
    first = re.sub(r"Error performing (\w+) .*? in [\d.]+\S+ - ", r"\1: ", first)
    status, xml, _ = first.partition(": <")
    if xml:
        said = re.findall(r"<(?:Code|Message)>([^<]*)", first)
        return ": ".join([status, *said])
    causes = re.findall(r'(?:message|error): "([^"]*)"', debug)
    return ": ".join([first.strip(), *causes[-1:]])
