"""The client that reaches every protocol: fsspec.

A write is one `pipe_file` of complete bytes: a file object of fsspec, closed by an exception, would
publish the half it got. On object stores that makes every object whole or absent; on file servers
(SFTP, HDFS) a reader may see a write in progress.
"""

import time
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import fsspec
from fsspec.asyn import AsyncFileSystem, sync

from kdscale.errors import KdscaleError
from kdscale.store.aws import s3fs_options
from kdscale.store.redact import redact
from kdscale.store.retry import chain, http_status
from kdscale.store.store import Entry

_EXTRAS = {
    "s3": "s3",
    "s3a": "s3",
    "gs": "gcs",
    "gcs": "gcs",
    "abfs": "azure",
    "abfss": "azure",
    "az": "azure",
}
# Their file systems turn mode="create" into the store's own conditional put.
_CONDITIONAL = {*_EXTRAS, "memory"}
# Otherwise s3fs asks for the size before every read, to split large objects: two requests for one.
_ONE_REQUEST = {"s3": {"max_concurrency": 1}, "s3a": {"max_concurrency": 1}}
_SLOWEST_UPLOAD = 2**20  # bytes a second
# What the file systems call the time of the last write.
_MODIFIED = ("LastModified", "last_modified", "mtime", "updated", "modified", "created")


def claims_conditional_put(url: str) -> bool:
    """Return whether the protocol of `url` has a conditional put."""
    return url.partition("://")[0] in _CONDITIONAL


class FsspecBackend:
    """The file system of `url`. See Backend. KdscaleError where its package is missing.

    read_timeout: seconds of a server's silence.
    """

    def __init__(self, url: str, read_timeout: float) -> None:
        self._protocol = url.partition("://")[0]
        self._read_timeout = read_timeout
        self._filesystem = _open(url, read_timeout)

    def read(self, url: str) -> bytes:
        """See `Backend.read`."""
        options = _ONE_REQUEST.get(self._protocol, {})
        data: bytes = self._filesystem.cat_file(self._path(url), **options)
        return data

    def read_range(self, url: str, start: int, length: int) -> bytes:
        """See `Backend.read_range`."""
        end = start + length
        data: bytes = self._filesystem.cat_file(self._path(url), start=start, end=end)
        return data

    def write(self, url: str, data: bytes) -> None:
        """See `Backend.write`."""
        self._send("pipe_file", self._path(url), data, size=len(data))

    def create(self, url: str, data: bytes) -> bool:
        """See `Backend.create`.

        Where the protocol has no conditional put, it is a look and then a put: only a
        single committer may rely on that.
        """
        path = self._path(url)
        if not claims_conditional_put(url):
            if self._filesystem.exists(path):
                return False
            self._send("pipe_file", path, data, size=len(data))
            return True
        try:
            self._send("pipe_file", path, data, size=len(data), mode="create")
        except OSError as error:
            # s3fs knows only Amazon's wording of a refusal.
            if isinstance(error, FileExistsError) or 412 in map(http_status, chain(error)):
                return False
            raise
        return True

    def size(self, url: str) -> int:
        """See `Backend.size`."""
        info = self._filesystem.info(self._path(url))
        if info["type"] != "file":
            raise FileNotFoundError(url)
        return int(info["size"])

    def remove(self, url: str) -> None:
        """See `Backend.remove`."""
        with suppress(FileNotFoundError):
            self._filesystem.rm_file(self._path(url))

    def find(self, url: str) -> list[Entry]:
        """See `Backend.find`."""
        folder = self._path(url) + "/"
        found = self._filesystem.find(self._path(url), detail=True)
        return [
            Entry(path.removeprefix(folder), int(info["size"] or 0), _modified(info))
            for path, info in found.items()
            # Some consoles make "folders": empty objects whose key ends in a slash.
            if path.startswith(folder) and not path.endswith("/")
        ]

    def send_file(self, url: str, path: Path) -> None:
        """See `Backend.send_file`."""
        self._send("put_file", str(path), self._path(url), size=path.stat().st_size)

    def fetch_file(self, url: str, path: Path) -> None:
        """See `Backend.fetch_file`."""
        self._filesystem.get_file(self._path(url), str(path))

    def _path(self, url: str) -> str:
        """Return the file system's own name of `url`.

        Without protocol, user and host as it needs it.
        """
        path: str = self._filesystem._strip_protocol(url)
        return path

    def _send(self, method: str, *arguments: Any, size: int, **options: Any) -> None:
        """Call a method that sends `size` bytes, with a time limit; TimeoutError.

        aiohttp times a server's silence only once the body is out, and would wait for ever.
        """
        filesystem = self._filesystem
        if not isinstance(filesystem, AsyncFileSystem):
            getattr(filesystem, method)(*arguments, **options)
            return
        limit = self._read_timeout + size / _SLOWEST_UPLOAD
        coroutine = getattr(filesystem, f"_{method}")
        sync(filesystem.loop, coroutine, *arguments, timeout=limit, **options)


def _open(url: str, read_timeout: float) -> Any:
    protocol = url.partition("://")[0]
    options: dict[str, Any] = {"skip_instance_cache": True, "use_listings_cache": False}
    if protocol in ("s3", "s3a"):
        options |= s3fs_options(read_timeout)
    try:
        filesystem, _ = fsspec.core.url_to_fs(url, **options)
    except ImportError as error:
        extra = _EXTRAS.get(protocol)
        raise KdscaleError(
            f"The store {redact(url)} needs a package that is not installed: {error}.",
            f"pip install 'kdscale[{extra}]'" if extra else "Install the package named.",
        ) from error
    if protocol in ("s3", "s3a"):
        filesystem.retries = 1  # An attribute of s3fs, not an argument; our policy is above it.
    return filesystem


def _modified(info: dict[str, Any]) -> float:
    """Seconds since the epoch; the present where the protocol tells none, so nothing looks old."""
    for name in _MODIFIED:
        value = info.get(name)
        if isinstance(value, str):
            value = datetime.fromisoformat(value)
        if isinstance(value, datetime):
            return (value if value.tzinfo else value.replace(tzinfo=UTC)).timestamp()
        if isinstance(value, int | float):
            return float(value)
    return time.time()
