"""The contract of a store: flat keys to bytes, each object whole or absent.

Everything above counts on no more than object storage gives: no rename, no append, no lock. A
writer that dies leaves whole objects or nothing, and `put_if_absent` is the one way to decide
between writers.
"""

import uuid
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

from kdscale.errors import KdscaleError, StoreError
from kdscale.store.redact import redact


@dataclass(frozen=True)
class Entry:
    """An object as a listing shows it: size in bytes, last write in seconds since the epoch."""

    key: str
    size: int
    modified: float


@dataclass(frozen=True, repr=False)
class Store(ABC):
    """Objects under `url`, hashable by it. Safe to pickle, to fork and to use from many threads.

    A key is a relative path such as "commits/3.json". Methods that read raise FileNotFoundError
    where the key holds nothing; a store that stays out of reach after all retries raises OSError.
    """

    url: str

    def __str__(self) -> str:
        """Return the URL without credentials, as messages should show it."""
        return redact(self.url)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({str(self)!r})"

    def child(self, name: str) -> Self:
        """Return the store under `name`, which may contain "/"."""
        return replace(self, url=self._join(name))

    def _join(self, key: str) -> str:
        # Keys also come from listings of buckets that others write to.
        if not {"", ".", ".."}.isdisjoint(key.split("/")):
            raise KdscaleError(
                f"{key!r} is not a key of {self}: it leads out of it, or has an empty part.",
                "Remove the object of that name; kdscale writes none such.",
            )
        return f"{self.url}/{key}"

    @property
    def claims_conditional_put(self) -> bool:
        """Return whether the protocol has one; whether it works, `probe` finds out."""
        return True

    @abstractmethod
    def local_path(self, key: str = "") -> Path | None:
        """Return the path of `key` (of the store itself for ""); None where the store is remote."""

    @abstractmethod
    def get(self, key: str) -> bytes:
        """Return the whole object."""

    @abstractmethod
    def get_range(self, key: str, start: int, length: int) -> bytes:
        """Exactly `length` bytes from byte `start`; OSError where the object does not have them."""

    @abstractmethod
    def get_ranges(self, key: str, spans: Sequence[tuple[int, int]]) -> list[bytes]:
        """`get_range` of each (start, length), in order, fetched side by side."""

    @abstractmethod
    def put(self, key: str, data: bytes) -> None:
        """Write the object in one piece, over what is there. No reader ever sees half of it."""

    @abstractmethod
    def put_if_absent(self, key: str, data: bytes) -> bool:
        """Write the object unless the key is taken; True when the key then holds exactly `data`.

        Of simultaneous writers of different data exactly one gets True. A taken key is read back,
        because it may hold this very write: its answer was lost and it was sent again.
        """

    @abstractmethod
    def exists(self, key: str) -> bool:
        """Return whether the key holds an object."""

    @abstractmethod
    def size(self, key: str) -> int:
        """Bytes of the object."""

    @abstractmethod
    def delete(self, key: str) -> None:
        """Remove the object; a key that holds nothing is fine."""

    @abstractmethod
    def entries(self, prefix: str = "") -> list[Entry]:
        """Like `list`, with size and age. A store that tells no ages says that all is fresh."""

    def leftovers(self) -> list[Entry]:
        """Return what killed writers left and no listing shows; `delete` takes their keys.

        A writer at work has such an object too, so only old ones may go. Remote stores have
        none.
        """
        return []

    @abstractmethod
    def list(self, prefix: str = "") -> list[str]:
        """Keys that start with `prefix`, at any depth, sorted."""

    @abstractmethod
    def put_file(self, key: str, path: Path) -> None:
        """Like `put`, from a file that may be larger than memory."""

    @abstractmethod
    def get_file(self, key: str, path: Path) -> None:
        """Write the object to the file `path`, whole or not at all, and not through memory."""

    def check(self) -> None:
        """Find out within seconds whether the store can be read and written.

        Writes, reads and deletes a marker. KdscaleError names the URL, the cause and the fix.
        """
        key = f"kdscale-check-{uuid.uuid4().hex}"
        data = uuid.uuid4().bytes
        try:
            written = self.put_if_absent(key, data)
            found = self.get(key)
            self.delete(key)
        except StoreError as error:
            raise KdscaleError(
                f"The store {self} cannot be used: {error.what}.", error.fix
            ) from error
        if not written or found != data:
            raise KdscaleError(
                f"The store {self} does not give back what was written to it.",
                "Use a store with read-after-write consistency.",
            )
