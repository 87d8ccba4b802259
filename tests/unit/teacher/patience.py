"""Wait for another thread."""

import threading
from collections.abc import Callable

PATIENCE_SECONDS = 30


def wait_until(ready: Callable[[], bool]) -> None:
    """Look again and again; AssertionError after PATIENCE_SECONDS."""
    tick = threading.Event()
    for _ in range(PATIENCE_SECONDS * 1000):
        if ready():
            return
        tick.wait(0.001)
    raise AssertionError
