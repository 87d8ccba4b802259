"""A store behind a client: S3, GCS, Azure and whatever else fsspec reaches.

What the clients have in common is here: the retry policy, the wording of errors, and the handling
of short answers and refused creates.
"""

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TypeVar

from kdscale.errors import KdscaleError, StoreError
from kdscale.store.connection import Backend, Connection
from kdscale.store.errors import is_bucket_missing, worded
from kdscale.store.fsspec_backend import claims_conditional_put
from kdscale.store.local import temporary_beside
from kdscale.store.redact import redact
from kdscale.store.retry import Retry, chain, http_status, is_transient
from kdscale.store.store import Entry, Store

T = TypeVar("T")

_RANGES_AT_ONCE = 16
# Seconds until the bucket has answered: one that never has is more likely misnamed than down. With
# a connection's time for a silent server it is less than the minute that a person waits.
_FIRST_DEADLINE = 25.0


@dataclass(frozen=True, repr=False)
class RemoteStore(Store):
    """A store whose `url` names a protocol of fsspec. Children share its connection."""

    connection: Connection = field(compare=False)
    retry: Retry = field(default=Retry(), compare=False)

    @property
    def claims_conditional_put(self) -> bool:
        """See `Store.claims_conditional_put`."""
        return claims_conditional_put(self.url)

    def local_path(self, key: str = "") -> None:
        """See `Store.local_path`: there is none."""

    def get(self, key: str) -> bytes:
        """See `Store.get`."""
        return self._call("get", self._join(key), lambda backend, url: backend.read(url))

    def get_range(self, key: str, start: int, length: int) -> bytes:
        """See `Store.get_range`."""
        assert min(start, length) >= 0, (start, length)
        if length == 0:
            return b""

        def read(backend: Backend, url: str) -> bytes:
            data = backend.read_range(url, start, length)
            if len(data) == length:
                return data
            if backend.size(url) < start + length:
                raise OSError(f"it has {len(data)} bytes from byte {start}, not {length}")
            raise ConnectionError(f"answered {len(data)} bytes instead of {length}")

        return self._call("get_range", self._join(key), read)

    def get_ranges(self, key: str, spans: Sequence[tuple[int, int]]) -> list[bytes]:
        """See `Store.get_ranges`."""
        if len(spans) < 2:
            return [self.get_range(key, *span) for span in spans]
        with ThreadPoolExecutor(min(len(spans), _RANGES_AT_ONCE)) as pool:
            return list(pool.map(lambda span: self.get_range(key, *span), spans))

    def put(self, key: str, data: bytes) -> None:
        """See `Store.put`."""
        self._call("put", self._join(key), lambda backend, url: backend.write(url, data))

    def put_if_absent(self, key: str, data: bytes) -> bool:
        """See `Store.put_if_absent`.

        Where the protocol has no conditional put, it is a look and then a put: only a
        single committer may rely on that.
        """

        def create(backend: Backend, url: str) -> bool:
            if backend.create(url, data):
                return True
            try:
                return backend.read(url) == data
            except FileNotFoundError as error:
                raise ConnectionError("refused as taken, yet it holds nothing") from error

        return self._call("put_if_absent", self._join(key), create)

    def exists(self, key: str) -> bool:
        """See `Store.exists`."""
        try:
            self.size(key)
        except FileNotFoundError:
            return False
        return True

    def size(self, key: str) -> int:
        """See `Store.size`."""

        def find(backend: Backend, url: str) -> int:
            try:
                return backend.size(url)
            except OSError as error:
                # The answer to a HEAD does not say which: no object or no bucket, no key or a wrong
                # one. That to a GET does.
                if not self.connection.has_answered and not is_transient(error):
                    backend.read_range(url, 0, 1)
                raise

        return self._call("size", self._join(key), find)

    def delete(self, key: str) -> None:
        """See `Store.delete`."""
        self._call("delete", self._join(key), lambda backend, url: backend.remove(url))

    def entries(self, prefix: str = "") -> list[Entry]:
        """See `Store.entries`."""
        folder = prefix.rpartition("/")[0]
        base = self._join(folder) if folder else self.url
        found = self._call("list", base, lambda backend, url: backend.find(url))
        inside = f"{folder}/" if folder else ""
        entries = (replace(entry, key=inside + entry.key) for entry in found)
        return sorted(
            (entry for entry in entries if entry.key.startswith(prefix)),
            key=lambda entry: entry.key,
        )

    def list(self, prefix: str = "") -> list[str]:
        """See `Store.list`."""
        return [entry.key for entry in self.entries(prefix)]

    def put_file(self, key: str, path: Path) -> None:
        """See `Store.put_file`."""
        self._call(
            "put_file", self._join(key), lambda backend, url: backend.send_file(url, path), path
        )

    def get_file(self, key: str, path: Path) -> None:
        """See `Store.get_file`."""
        with temporary_beside(path) as temporary:
            self._call(
                "get_file",
                self._join(key),
                lambda backend, url: backend.fetch_file(url, temporary),
                path,
            )
            os.replace(temporary, path)

    def check(self) -> None:
        # With short timeouts on a new connection: this runs while a person waits at a prompt.
        """See `Store.check`."""
        quick = Connection(self.url, read_timeout=8)
        Store.check(replace(self, connection=quick, retry=Retry(deadline=8)))

    def _call(
        self,
        verb: str,
        url: str,
        operation: Callable[[Backend, str], T],
        path: Path | None = None,
    ) -> T:
        """Call `operation(client, url)` under the retry policy.

        FileNotFoundError for a missing object, StoreError for all other failures. path: the
        file of this machine that it is about too.
        """
        known = self.connection.has_answered
        deadline = self.retry.deadline if known else min(self.retry.deadline, _FIRST_DEADLINE)
        retry = replace(self.retry, deadline=deadline, knows_host=known)
        try:
            found = retry(lambda: operation(self.connection.backend(), url), f"{verb} {url}")
        except (KdscaleError, StoreError):
            raise
        except Exception as error:
            if is_bucket_missing(error):
                raise worded(error, verb, url, path) from error
            if isinstance(error, FileNotFoundError):
                self.connection.heard()
                raise FileNotFoundError(f"{verb} {redact(url)}: {redact(str(error))}") from error
            if any(map(http_status, chain(error))):
                self.connection.heard()
            raise worded(error, verb, url, path) from error
        self.connection.heard()
        return found
