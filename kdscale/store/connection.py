"""A client of a remote store, one for each process.

Clients hold sockets and threads, which survive neither a fork nor a pickle. So a store carries only
what is needed to open one, and each process opens its own at the first call.

S3, GCS and Azure are reached through obstore where it is installed and knows the credentials in
use, and through fsspec otherwise, as everything else is. KDSCALE_STORE=fsspec in the environment
asks for fsspec everywhere.
"""

import importlib.util
import logging
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from kdscale.store.aws import check_endpoint, endpoint
from kdscale.store.fsspec_backend import FsspecBackend
from kdscale.store.redact import redact
from kdscale.store.store import Entry

log = logging.getLogger(__name__)

# The process that first used obstore. Its runtime is one for all clients of a process, and its
# threads do not come along in a fork: a child that called it would wait for ever.
_native_process: int | None = None

# Buckets that have answered this process, or the one that handed it the connection; each with the
# endpoint.
_answered: set[tuple[str, str | None]] = set()


class Backend(Protocol):
    """One process's client. Safe in many threads; neither pickled nor used after a fork.

    Methods that read raise FileNotFoundError where there is nothing at the URL; any other failure
    is an OSError or an exception of the client, which `retry` tells apart.
    """

    def read(self, url: str) -> bytes:
        """Return the whole object."""

    def read_range(self, url: str, start: int, length: int) -> bytes:
        """`length` bytes from byte `start`; fewer where the object ends or the answer is cut."""

    def write(self, url: str, data: bytes) -> None:
        """Write the object in one piece, over what is there."""

    def create(self, url: str, data: bytes) -> bool:
        """Write the object in one request unless the key is taken; False where the store says so.

        The refusal may be the answer to this very write, sent twice by the network below.
        """

    def size(self, url: str) -> int:
        """Bytes of the object."""

    def remove(self, url: str) -> None:
        """Remove the object; nothing there is fine."""

    def find(self, url: str) -> list[Entry]:
        """All objects below the folder `url`, at any depth, with keys relative to it."""

    def send_file(self, url: str, path: Path) -> None:
        """Like `write`, from a file that may be larger than memory."""

    def fetch_file(self, url: str, path: Path) -> None:
        """Write the object to the file `path`, which a failure leaves in any state."""


@dataclass(frozen=True, repr=False)
class Connection:
    """Connection data of the client of `url`; `read_timeout` is in seconds of silence."""

    url: str
    read_timeout: float = 30.0
    # By process id. A forked child leaves its parent's entry alone: closing it there would cut the
    # connections that both share.
    _opened: dict[int, Backend] = field(default_factory=dict, compare=False)

    def __repr__(self) -> str:
        return f"Connection({redact(self.url)!r}, {self.read_timeout})"

    def __reduce__(self) -> tuple[Any, ...]:
        return _connect, (self.url, self.read_timeout, self.has_answered)

    @property
    def has_answered(self) -> bool:
        """Return whether the bucket has ever answered, be it with a refusal of what was asked."""
        return self._bucket in _answered

    def heard(self) -> None:
        """Note that the bucket has answered."""
        _answered.add(self._bucket)

    def backend(self) -> Backend:
        """Return the client of this process. KdscaleError where the package it needs is missing."""
        found = self._opened.get(os.getpid())
        # Threads that meet here first may each open one; the first stored stays.
        return found or self._opened.setdefault(os.getpid(), self._open())

    @property
    def _bucket(self) -> tuple[str, str | None]:
        protocol, _, rest = self.url.partition("://")
        return f"{protocol}://{rest.partition('/')[0]}", endpoint()

    def _open(self) -> Backend:
        global _native_process
        if self.url.startswith(("s3://", "s3a://")):
            check_endpoint()
        if os.environ.get("KDSCALE_STORE") != "fsspec" and importlib.util.find_spec("obstore"):
            from kdscale.store.obstore_backend import open_obstore

            if _native_process in (None, os.getpid()):
                native = open_obstore(self.url, self.read_timeout)
                if native is not None:
                    _native_process = os.getpid()
                    return native
            else:
                log.info("%s: through fsspec, because obstore does not survive a fork", self)
        return FsspecBackend(self.url, self.read_timeout)


def _connect(url: str, read_timeout: float, has_answered: bool) -> Connection:
    """Return a connection that another process has handed over."""
    connection = Connection(url, read_timeout)
    if has_answered:
        connection.heard()
    return connection
