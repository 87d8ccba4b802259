"""Requests to stop a run: by an object in its output, from anywhere, or by a signal to its driver.

The first request lets the workers save their state: a training writes a checkpoint after the
present step, a capture commits the shards in flight. A second one, or the end of the time that the
first one gave, ends the run at once. Either way the same command resumes where the run stopped.
"""

import json
import os
import signal
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from types import FrameType
from typing import Any, Self

from kdscale.errors import ExitCode, KdscaleError
from kdscale.store import Store

STOP_KEY = "stop.json"
_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_POLL_SECONDS = 2.0


class StoppedError(KdscaleError):
    """A run that has stopped because it was asked to."""

    exit_code = ExitCode.STOPPED

    def __init__(self, problem: str, fix: str = "The same command resumes it.") -> None:
        super().__init__(problem, fix)


@dataclass(frozen=True)
class StopRequest:
    """A request in a run's output; the run has `seconds` to save its state."""

    id: str
    seconds: float


def request_stop(output: Store, seconds: float) -> str:
    """Ask the run whose output this is to stop within `seconds`; return the request's id.

    The run's driver looks every 2 seconds. A run that starts later ignores it.
    """
    request = StopRequest(uuid.uuid4().hex, seconds)
    output.put(STOP_KEY, json.dumps(asdict(request)).encode())
    return request.id


class StopRequests:
    """The requests to a driver; a context manager around the whole run, in the main thread.

    Requests from before the block are dropped at its start, and all at its end.
    """

    def __init__(self, output: Store) -> None:
        self._output = output
        self._cause = ""
        self._deadline = float("inf")
        self._is_graceful = False
        self._end = threading.Event()
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Self:
        self._output.delete(STOP_KEY)
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._on_signal) for number in _SIGNALS}
        threading.Thread(target=self._poll, name="stop requests", daemon=True).start()
        return self

    def __exit__(self, *error: object) -> None:
        self._end.set()
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._output.delete(STOP_KEY)

    def check(self) -> None:
        """Raise StoppedError if the run was asked to stop: between two stages."""
        if self._cause:
            raise self.error()

    def error(self) -> StoppedError:
        """Return the error of a run that has saved its state and stops."""
        return StoppedError(f"The run has stopped as asked by {self._cause}.")

    @contextmanager
    def graceful(self, supported: bool = True) -> Iterator[None]:
        """Mark a block that looks at `stop_requested` and ends by itself.

        Elsewhere a request ends the run at once: there is no state to save.
        """
        self._is_graceful = supported
        try:
            yield
        finally:
            self._is_graceful = False

    def stop_requested(self) -> bool:
        """Return whether to save the state and end.

        Raises:
            StoppedError: The time for that is over.
        """
        if time.monotonic() > self._deadline:
            raise StoppedError(
                f"The run did not stop within the time that {self._cause} gave, and was ended.",
                "The same command resumes from the last checkpoint, or the last committed shard.",
            )
        return bool(self._cause)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        name = signal.Signals(number).name
        if self._cause or not self._is_graceful:
            raise StoppedError(f"The run was ended at once by {self._cause or name}.")
        self._accept(name, float("inf"))

    def _accept(self, cause: str, seconds: float) -> None:
        self._cause, self._deadline = cause, time.monotonic() + seconds
        print(f"asked to stop by {cause}: saving; a second signal ends the run now", flush=True)

    def _poll(self) -> None:
        while not self._end.wait(_POLL_SECONDS):
            request = self._read()
            if request is None or self._cause:
                continue
            cause = f"the request {request.id[:8]}"
            if self._is_graceful or not self._before:
                self._accept(cause, request.seconds)
            else:
                # Wakes the main thread, whatever it is in: `_on_signal` ends the run.
                self._cause = cause
                os.kill(os.getpid(), signal.SIGTERM)

    def _read(self) -> StopRequest | None:
        """Return the request in the store; None if there is none or the store does not answer."""
        try:
            return StopRequest(**json.loads(self._output.get(STOP_KEY)))
        except (OSError, TypeError, ValueError):
            return None
