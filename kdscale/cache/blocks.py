"""Decoded blocks in memory: fetched in parallel, each once at a time, the least recent dropped.

Random rows share blocks, and batches read ahead want the same block at the same time. So the table
holds futures: who comes second waits for the first one's fetch.
"""

import threading
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor

from kdscale.cache.container import CachedRows

_THREADS = 8


class BlockCache:
    """An LRU of decoded blocks of at most `memory_bytes`, and the threads that fill it.

    load: from a block's number to its rows and the bytes that were fetched for them. What it raises
    reaches everyone who waits for that block, and the next request tries again.
    """

    def __init__(self, load: Callable[[int], tuple[CachedRows, int]], memory_bytes: int) -> None:
        self._load = load
        self._memory_bytes = memory_bytes
        self._lock = threading.Lock()
        self._blocks: OrderedDict[int, Future[CachedRows]] = OrderedDict()
        self._sizes: dict[int, int] = {}
        self._pool = ThreadPoolExecutor(_THREADS, thread_name_prefix="cache-block")
        self.fetched = 0
        self.fetched_bytes = 0
        self.hits = 0

    @property
    def nbytes(self) -> int:
        """Bytes of the blocks held."""
        with self._lock:
            return sum(self._sizes.values())

    def stream(self, numbers: Iterable[int]) -> Iterator[tuple[int, CachedRows]]:
        """Each block with its number, in the order asked for, with a few fetched ahead.

        The window bounds memory: beside the LRU only the blocks in flight are alive.
        """
        waiting: deque[tuple[int, Future[CachedRows]]] = deque()
        for number in numbers:
            waiting.append((number, self._request(number)))
            if len(waiting) > _THREADS:
                first, future = waiting.popleft()
                yield first, future.result()
        for number, future in waiting:
            yield number, future.result()

    def _request(self, number: int) -> Future[CachedRows]:
        with self._lock:
            if number in self._blocks:
                self.hits += 1
                self._blocks.move_to_end(number)
            else:
                self._blocks[number] = self._pool.submit(self._fetch, number)
            return self._blocks[number]

    def _fetch(self, number: int) -> CachedRows:
        try:
            block, fetched = self._load(number)
        except BaseException:
            with self._lock:
                del self._blocks[number]
            raise
        with self._lock:
            self.fetched += 1
            self.fetched_bytes += fetched
            self._sizes[number] = block.nbytes
            self._evict()
        return block

    def _evict(self) -> None:
        """Drop the least recently used loaded blocks until the rest fits. Needs the lock."""
        excess = sum(self._sizes.values()) - self._memory_bytes
        for number in [number for number in self._blocks if number in self._sizes]:
            if excess <= 0:
                return
            excess -= self._sizes.pop(number)
            del self._blocks[number]
