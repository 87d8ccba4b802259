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

from kdscale.store.backend import Backend
from kdscale.store.fsspec_backend import FsspecBackend
from kdscale.store.redact import redact

log = logging.getLogger(__name__)

# The process that first used obstore. Its runtime is one for all clients of a process, and its
# threads do not come along in a fork: a child that called it would wait for ever.
_native_process: int | None = None


@dataclass(frozen=True, repr=False)
class Connection:
    """What it takes to open the client of `url`; `read_timeout` is in seconds of silence."""

    url: str
    read_timeout: float = 60.0
    # By process id. A forked child leaves its parent's entry alone: closing it there would cut the
    # connections that both share.
    _opened: dict[int, Backend] = field(default_factory=dict, compare=False)

    def __repr__(self) -> str:
        return f"Connection({redact(self.url)!r}, {self.read_timeout})"

    def __reduce__(self) -> tuple[type["Connection"], tuple[str, float]]:
        return Connection, (self.url, self.read_timeout)

    def backend(self) -> Backend:
        """The client of this process. KdscaleError where the package it needs is missing."""
        found = self._opened.get(os.getpid())
        # Threads that meet here first may each open one; the first stored stays.
        return found or self._opened.setdefault(os.getpid(), self._open())

    def _open(self) -> Backend:
        global _native_process
        if os.environ.get("KDSCALE_STORE") != "fsspec" and importlib.util.find_spec("obstore"):
            from kdscale.store.native import open_native

            if _native_process in (None, os.getpid()):
                native = open_native(self.url, self.read_timeout)
                if native is not None:
                    _native_process = os.getpid()
                    return native
            else:
                log.info("%s: through fsspec, because obstore does not survive a fork", self)
        return FsspecBackend(self.url, self.read_timeout)
