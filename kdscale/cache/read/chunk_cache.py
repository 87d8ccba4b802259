"""Decoded chunks in memory: fetched in parallel, each once at a time, within a budget of bytes.

Random rows share chunks, and batches read ahead want the same chunk at the same time. So the table
holds futures: a second request waits for the first one's fetch.

The budget covers what is held, what is on its way and what waits to be used. How large a chunk gets
is known from those before it (all but a shard's last are of one size), so the first is fetched
alone. Fetching ahead stops where nothing more can be dropped, and one chunk may always go beyond
the budget, or a small budget would read nothing. A thread that waits for room holds no chunk,
so no two can wait for each other.
"""

import threading
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field

from kdscale.cache.format.row_records import FixedRows
from kdscale.cache.read.disk_cache import MappedRows

_THREADS = 8
# A mapped chunk is the kernel's memory, dropped when it is needed elsewhere. It still counts a
# little: a deleted file keeps its place on the disk while it is mapped, and a process may have
# 65,530 mappings.
_MAPPED_SHARE = 8
_MOST_MAPPED = 8192


@dataclass(eq=False)
class _Entry:
    """A chunk in the table."""

    number: int
    users: int
    """Its fetch, and the streams that still want it. Without any it may be dropped."""

    future: Future[FixedRows] = field(default_factory=Future)
    charge: int = 0
    """Bytes of the budget, once it is loaded."""


class ChunkCache:
    """An LRU of decoded chunks of at most `memory_bytes`, and the threads that fill it.

    load: from a chunk's number to its rows and the bytes that were fetched from the store for them
    (0 where a local disk had them). What it raises reaches every stream that waits for that chunk,
    and the next request tries again.
    """

    def __init__(self, load: Callable[[int], tuple[FixedRows, int]], memory_bytes: int) -> None:
        assert memory_bytes > 0
        self._load = load
        self._memory_bytes = memory_bytes
        self._room = threading.Condition()
        self._entries: dict[int, _Entry] = {}
        self._idle: OrderedDict[int, _Entry] = OrderedDict()
        self._on_the_way = 0
        self._held_bytes = 0
        self._idle_bytes = 0
        self._largest_chunk = 0
        self._largest_charge = 0
        self._pool = ThreadPoolExecutor(_THREADS, thread_name_prefix="cache-chunk")
        self.fetched = 0
        self.fetched_bytes = 0
        self.hits = 0
        self.disk_hits = 0

    @property
    def nbytes(self) -> int:
        """Bytes of the budget in use."""
        with self._room:
            return self._bytes(self._on_the_way)

    @property
    def metrics(self) -> dict[str, float]:
        """Count requests for a chunk by where it was found.

        `chunk_hits` in memory (or on its way there), `disk_hits`, `chunks_fetched` from the
        store; and `bytes_fetched`.
        """
        with self._room:
            return {
                "chunks_fetched": self.fetched,
                "bytes_fetched": self.fetched_bytes,
                "chunk_hits": self.hits,
                "disk_hits": self.disk_hits,
            }

    def stream(self, numbers: Iterable[int]) -> Iterator[tuple[int, FixedRows]]:
        """Yield each chunk with its number, in the order asked for, fetched ahead as room allows.

        Let a chunk go when you ask for the next, and have one stream open in a thread.
        """
        wanted = deque(numbers)
        waiting: deque[_Entry] = deque()
        used: list[_Entry] = []
        try:
            while wanted or waiting:
                if wanted:
                    # One visit to the table for many chunks, unless there is no room for them.
                    self._release(used)
                    used = []
                    self._request(wanted, waiting)
                used.append(waiting.popleft())
                yield used[-1].number, used[-1].future.result()
        finally:
            self._release([*waiting, *used])

    def _request(self, wanted: deque[int], waiting: deque[_Entry]) -> None:
        """Move chunks from `wanted` to `waiting`, as their user, while there is room for them.

        Waits for room for the first.
        """
        with self._room:
            while wanted:
                if (entry := self._entries.get(wanted[0])) is not None:
                    self._use(entry)
                elif self._make_room():
                    entry = self._submit(wanted[0])
                elif waiting:
                    return
                else:
                    self._room.wait()
                    continue
                waiting.append(entry)
                wanted.popleft()

    def _use(self, entry: _Entry) -> None:
        """One user more. Needs the lock."""
        self.hits += 1
        if self._idle.pop(entry.number, None):
            self._idle_bytes -= entry.charge
        entry.users += 1

    def _submit(self, number: int) -> _Entry:
        """Start to fetch a chunk, for its first stream. Needs the lock."""
        entry = _Entry(number, users=2)
        self._pool.submit(self._fetch, entry)
        self._entries[number] = entry
        self._on_the_way += 1
        return entry

    def _fetch(self, entry: _Entry) -> None:
        try:
            chunk, fetched = self._load(entry.number)
        except BaseException as error:
            with self._room:
                self._on_the_way -= 1
                del self._entries[entry.number]
            self._release([entry])
            entry.future.set_exception(error)
        else:
            with self._room:
                self._on_the_way -= 1
                self._hold(entry, chunk)
                self.fetched += fetched > 0
                self.fetched_bytes += fetched
                self.disk_hits += fetched == 0
            # Before the result is set: a stream that drops the chunk makes room at once.
            self._release([entry])
            entry.future.set_result(chunk)

    def _hold(self, entry: _Entry, chunk: FixedRows) -> None:
        entry.charge = chunk.nbytes
        if isinstance(chunk, MappedRows):
            least = self._memory_bytes // _MOST_MAPPED
            entry.charge = max(chunk.nbytes // _MAPPED_SHARE, least)
        self._held_bytes += entry.charge
        self._largest_charge = max(self._largest_charge, entry.charge)
        self._largest_chunk = max(self._largest_chunk, chunk.nbytes, entry.charge)

    def _release(self, entries: list[_Entry]) -> None:
        """One user less of each."""
        with self._room:
            for entry in entries:
                entry.users -= 1
                if entry.users == 0 and self._entries.get(entry.number) is entry:
                    self._idle[entry.number] = entry
                    self._idle_bytes += entry.charge
            while self._bytes(self._on_the_way) > self._memory_bytes and self._idle:
                self._drop_oldest()
            self._room.notify_all()

    def _make_room(self) -> bool:
        """Drop the least recently used until another chunk fits.

        False where that is not possible.

        Where there are only idle chunks, one more always fits. Needs the lock.
        """
        needed = self._bytes(self._on_the_way + 1)
        all_idle = self._on_the_way == 0 and self._idle_bytes == self._held_bytes
        if needed - self._idle_bytes > self._memory_bytes and not all_idle:
            return False
        while self._idle and self._bytes(self._on_the_way + 1) > self._memory_bytes:
            self._drop_oldest()
        return True

    def _bytes(self, on_the_way: int) -> int:
        """Return the bytes of the held chunks and of so many on the way.

        Only chunks that have a thread are being decoded, which takes a whole chunk; what
        they leave in memory may be less.
        """
        if self._largest_chunk == 0:
            return on_the_way * self._memory_bytes
        decoding = min(on_the_way, _THREADS) * (self._largest_chunk - self._largest_charge)
        return self._held_bytes + on_the_way * self._largest_charge + decoding

    def _drop_oldest(self) -> None:
        number, entry = self._idle.popitem(last=False)
        del self._entries[number]
        self._idle_bytes -= entry.charge
        self._held_bytes -= entry.charge
