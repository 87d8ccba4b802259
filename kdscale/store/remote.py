"""A store behind fsspec: S3, GCS, Azure and whatever else it reaches.

A write is one `pipe_file` of complete bytes: a file object of fsspec, closed by an exception, would
publish the half it got. On object stores that makes every object whole or absent; on file servers
(SFTP, HDFS) a reader may see a write in progress.
"""

import os
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TypeVar

from kdscale.store.check import check
from kdscale.store.connection import Connection
from kdscale.store.local import temporary_beside
from kdscale.store.redact import redact
from kdscale.store.retry import Retry, chain, http_status
from kdscale.store.store import Store

T = TypeVar("T")

# Their file systems turn mode="create" into the store's own conditional put.
_CONDITIONAL = {"s3", "s3a", "gs", "gcs", "abfs", "abfss", "az", "memory"}
# Otherwise s3fs asks for the size before every read, to split large objects: two requests for one.
_ONE_REQUEST = {"s3": {"max_concurrency": 1}, "s3a": {"max_concurrency": 1}}


@dataclass(frozen=True, repr=False)
class RemoteStore(Store):
    """A store whose `url` names a protocol of fsspec. Children share its connection."""

    connection: Connection = field(compare=False)
    retry: Retry = field(default=Retry(), compare=False)

    def local_path(self, key: str = "") -> None:
        return None

    def get(self, key: str) -> bytes:
        return self._call("get", self._join(key), self._read)

    def get_range(self, key: str, start: int, length: int) -> bytes:
        assert min(start, length) >= 0, (start, length)
        if length == 0:
            return b""
        ask = self.connection.ask

        def read(path: str) -> bytes:
            data: bytes = ask("cat_file", path, start=start, end=start + length)
            if len(data) == length:
                return data
            if ask("info", path)["size"] < start + length:
                raise OSError(f"it has {len(data)} bytes from byte {start}, not {length}")
            raise ConnectionError(f"answered {len(data)} bytes instead of {length}")

        return self._call("get_range", self._join(key), read)

    def put(self, key: str, data: bytes) -> None:
        def write(path: str) -> None:
            self.connection.ask("pipe_file", path, data, sends=len(data))

        self._call("put", self._join(key), write)

    def put_if_absent(self, key: str, data: bytes) -> bool:
        """See Store. Where the protocol has no conditional put, it is a look and then a put: only a
        single committer may rely on that."""

        def create(path: str) -> bool:
            if self._create(path, data):
                return True
            try:
                return self._read(path) == data
            except FileNotFoundError as error:
                raise ConnectionError("refused as taken, yet it holds nothing") from error

        return self._call("put_if_absent", self._join(key), create)

    def exists(self, key: str) -> bool:
        try:
            self.size(key)
        except FileNotFoundError:
            return False
        return True

    def size(self, key: str) -> int:
        def look(path: str) -> int:
            info = self.connection.ask("info", path)
            if info["type"] != "file":
                raise FileNotFoundError(path)
            return int(info["size"])

        return self._call("size", self._join(key), look)

    def delete(self, key: str) -> None:
        def remove(path: str) -> None:
            with suppress(FileNotFoundError):
                self.connection.ask("rm_file", path)

        self._call("delete", self._join(key), remove)

    def list(self, prefix: str = "") -> list[str]:
        folder = prefix.rpartition("/")[0]

        def find(path: str) -> list[str]:
            root = self.connection.path(self.url) + "/"
            found = self.connection.ask("find", path)
            keys = (name.removeprefix(root) for name in found if name.startswith(root))
            # Some consoles make "folders": empty objects whose key ends in a slash.
            return sorted(key for key in keys if key.startswith(prefix) and not key.endswith("/"))

        return self._call("list", self._join(folder) if folder else self.url, find)

    def put_file(self, key: str, path: Path) -> None:
        def send(remote: str) -> None:
            self.connection.ask("put_file", str(path), remote, sends=path.stat().st_size)

        self._call("put_file", self._join(key), send)

    def get_file(self, key: str, path: Path) -> None:
        with temporary_beside(path) as temporary:

            def fetch(remote: str) -> None:
                self.connection.ask("get_file", remote, str(temporary))

            self._call("get_file", self._join(key), fetch)
            os.replace(temporary, path)

    def check(self) -> None:
        # Impatient, on a connection of its own: this runs while somebody waits at a prompt.
        quick = Connection(self.url, read_timeout=8)
        check(replace(self, connection=quick, retry=Retry(deadline=8)))

    @property
    def _protocol(self) -> str:
        return self.url.partition("://")[0]

    def _read(self, path: str) -> bytes:
        options = _ONE_REQUEST.get(self._protocol, {})
        data: bytes = self.connection.ask("cat_file", path, **options)
        return data

    def _create(self, path: str, data: bytes) -> bool:
        """Write the object unless there is one; whether it was written."""
        ask = self.connection.ask
        if self._protocol not in _CONDITIONAL:
            if ask("exists", path):
                return False
            ask("pipe_file", path, data, sends=len(data))
            return True
        try:
            ask("pipe_file", path, data, mode="create", sends=len(data))
        except OSError as error:
            if _says_taken(error):
                return False
            raise
        return True

    def _call(self, verb: str, url: str, operation: Callable[[str], T]) -> T:
        """`operation(path of url)` under the retry policy, all its failures as OSError."""
        path = self.connection.path(url)
        try:
            return self.retry(lambda: operation(path), f"{verb} {url}")
        except FileNotFoundError as error:
            raise FileNotFoundError(f"{verb} {redact(url)}: {redact(str(error))}") from error
        except Exception as error:
            cause = f"{type(error).__name__}: {redact(str(error))}"
            raise OSError(f"{verb} {redact(url)}: {cause}") from error


def _says_taken(error: OSError) -> bool:
    """Whether a conditional put was refused; s3fs knows only Amazon's wording of it."""
    return isinstance(error, FileExistsError) or any(http_status(e) == 412 for e in chain(error))
