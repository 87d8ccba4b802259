"""Memory for batches that is used again when nobody holds the batch any more.

The kernel maps fresh memory page by page and clears it, which takes longer than copying rows into
it.
"""

import ctypes
import weakref
from collections import deque

import numpy as np


class BufferPool:
    """Arrays of up to `nbytes` bytes. Of those that came back the last `most` are kept; larger ones
    are not. Safe in many threads."""

    def __init__(self, nbytes: int, most: int) -> None:
        self._nbytes = nbytes
        self._free: deque[np.ndarray] = deque(maxlen=most)

    def take(self, nbytes: int) -> np.ndarray:
        """[nbytes] uint8 of any content. Its memory comes back when the last array or tensor that
        is a view of it goes."""
        if nbytes > self._nbytes:
            return np.empty(nbytes, np.uint8)
        try:
            memory = self._free.pop()
        except IndexError:
            # The kernel gives only what is touched.
            memory = np.empty(self._nbytes, np.uint8)
        # Views of an array refer to what owns its memory: to this, which can tell when it goes.
        loan = (ctypes.c_char * nbytes).from_buffer(memory.data)
        weakref.finalize(loan, self._free.append, memory).atexit = False
        return np.frombuffer(memoryview(loan), np.uint8)
