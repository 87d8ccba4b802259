"""What a client of a remote store must do. `fsspec_backend` and `native` do it.

Backends make one attempt and raise what went wrong: retries, messages and the redaction of
credentials are the store's. Every `url` is a whole one, such as "s3://bucket/folder/key".
"""

from pathlib import Path
from typing import Protocol

from kdscale.store.store import Entry


class Backend(Protocol):
    """One process's client. Safe in many threads; neither pickled nor used after a fork.

    Methods that read raise FileNotFoundError where nothing stands at the URL; any other failure is
    an OSError or an exception of the client, which `retry` tells apart.
    """

    def read(self, url: str) -> bytes:
        """The whole object."""

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
