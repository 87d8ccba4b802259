"""Where a chunk comes from: the local disk, else the store, fetched once for all of a host.

Everything slow is in here, so everything in here runs on the threads of `ChunkCache`: fetching,
decoding and keeping the decoded chunk on the disk. A chunk that was written to the disk is used
from there at once, so that its memory is the page cache's.
"""

import threading
import time
from typing import Protocol

from kdscale.cache.format.row_records import FixedRows
from kdscale.cache.read.disk_cache import DiskCache


class Chunks(Protocol):
    """Chunks as the store has them, by number."""

    def key(self, number: int) -> str:
        """What the disk knows a chunk under: it names the stored bytes and all that decoding
        depends on, in whatever cache or manifest."""
        ...

    def fetch(self, number: int) -> bytes:
        """The stored bytes, verified."""
        ...

    def decode(self, number: int, data: bytes) -> FixedRows:
        """The rows in what `fetch` gave."""
        ...


class ChunkSource:
    """Chunks by number, through the disk where there is one; safe in many threads."""

    def __init__(self, chunks: Chunks, disk: DiskCache | None) -> None:
        self._chunks = chunks
        self._disk = disk
        self._lock = threading.Lock()
        self._decode_seconds = 0.0

    @property
    def decode_seconds(self) -> float:
        """Processor time spent decoding, over all threads."""
        return self._decode_seconds

    def load(self, number: int) -> tuple[FixedRows, int]:
        """A chunk, and the bytes fetched from the store for it: 0 where the disk had it. Raises
        what fetching and decoding raise."""
        if self._disk is None:
            return self._load_from_store(number)
        key = self._chunks.key(number)
        if (kept := self._disk.get(key)) is not None:
            return kept, 0
        with self._disk.exclusive(key):
            # Another process may have fetched it while this one waited.
            if (kept := self._disk.get(key)) is not None:
                return kept, 0
            chunk, fetched = self._load_from_store(number)
            self._disk.put(key, chunk)
        kept = self._disk.get(key)
        return (chunk if kept is None else kept), fetched

    def _load_from_store(self, number: int) -> tuple[FixedRows, int]:
        data = self._chunks.fetch(number)
        started = time.thread_time()
        chunk = self._chunks.decode(number, data)
        with self._lock:
            self._decode_seconds += time.thread_time() - started
        return chunk, len(data)
