"""Bounded queue with worker threads, for work that runs beside the caller.

A full queue makes the caller wait. That is what keeps memory bounded when a store is slower than
the teacher.
"""

import queue
import threading
import time
from collections.abc import Callable
from typing import Generic, Self, TypeVar

import torch

Item = TypeVar("Item")


class WorkerQueue(Generic[Item]):
    """Queue of items for `work`, done in `threads` threads; in the caller if there are none.

    At most `waiting` items wait and `threads` are at work. A context manager: its end waits until
    all is done. The first error of a thread is raised by the next `put`, or at the end; items that
    come after it are dropped.
    """

    def __init__(
        self, name: str, work: Callable[[Item], None], *, threads: int, waiting: int
    ) -> None:
        self.waited = 0.0
        """Seconds that `put` has waited for space."""
        self._work = work
        self._queue: queue.Queue[Item | None] = queue.Queue(waiting)
        self._error: BaseException | None = None
        self._lock = threading.Lock()
        self._busy = 0.0
        self._threads = [
            threading.Thread(target=self._run, name=f"{name}-{number}", daemon=True)
            for number in range(threads)
        ]

    @property
    def busy(self) -> float:
        """Seconds spent in `work`, summed over the threads."""
        return self._busy

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        for _thread in self._threads:
            self._queue.put(None)
        for thread in self._threads:
            thread.join()
        if kind is None and self._error is not None:
            raise self._error

    def put(self, item: Item) -> None:
        """Add one item; wait while the queue is full."""
        if self._error is not None:
            raise self._error
        if not self._threads:
            self._do(item)
            return
        started = time.perf_counter()
        self._queue.put(item)
        self.waited += time.perf_counter() - started

    def _run(self) -> None:
        # The caller's computation has the other cores: further OpenMP threads would only displace
        # its own. This holds for the present thread alone.
        torch.set_num_threads(1)
        for item in iter(self._queue.get, None):
            # After an error the queue is still emptied, so that no `put` waits for ever.
            if self._error is None:
                try:
                    self._do(item)
                except BaseException as error:  # raised again in the caller's thread
                    self._error = error
            del item  # may be large, and the next one may be long in coming

    def _do(self, item: Item) -> None:
        started = time.perf_counter()
        try:
            self._work(item)
        finally:
            with self._lock:
                self._busy += time.perf_counter() - started
