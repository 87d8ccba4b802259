"""`progress.json`: the drivers of a run, when each was last heard of, and how far each stage is.

It is another key than `run.json`, so that the thread that writes it every few seconds and the
stages that write their record never meet. A store that fails is logged and tried again at the next
beat: no run waits for it or ends by it. Readers take the age of the last beat for the sign of a
driver that is alive.
"""

import logging
import os
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Literal, Self

from pydantic import Field, ValidationError

from kdscale.config.base import Config
from kdscale.errors import KdscaleError
from kdscale.run.lock import ray_job
from kdscale.run.stop import StoppedError
from kdscale.store import Store, explain
from kdscale.store.redact import redact
from kdscale.workers.channel import FAILURES_KEPT
from kdscale.workers.progress import RunningStage, StageProgress

log = logging.getLogger(__name__)

PROGRESS_KEY = "progress.json"
BEAT_SECONDS = 10.0
LOST_SECONDS = 60.0
"""A driver that was not heard of for so long counts as dead."""

_DRIVERS_KEPT = 20
_JOIN_SECONDS = 60.0


@dataclass(frozen=True, kw_only=True)
class RecordedProgress(StageProgress):
    """Progress of a stage over all attempts at its fingerprint."""

    fingerprint: str
    started: float
    """Unix seconds at which the last driver began with it."""


class Driver(Config):
    """A process that ran the stages, or tried to."""

    host: str
    pid: int
    job: str | None
    """Id of its Ray job; None for a process started by hand."""

    started: float
    heard: float
    """Unix seconds, by the driver's clock."""

    stage: str | None = None
    """The stage that it was last at."""

    state: Literal["running", "complete", "failed", "stopped", "lost"] = "running"
    """`stopped`: it was asked to. `lost`: it ended without writing how, as its successor found."""

    cause: str = ""


class ProgressRecord(Config):
    """The content of `progress.json`."""

    drivers: tuple[Driver, ...] = ()
    """Oldest first."""

    stages: dict[str, RecordedProgress] = Field(default_factory=dict)


def read_progress(store: Store) -> ProgressRecord | None:
    """Return the progress of the run in `store`, None if it has not written any."""
    try:
        data = store.get(PROGRESS_KEY)
    except FileNotFoundError:
        return None
    try:
        return ProgressRecord.model_validate_json(data)
    except ValidationError as error:
        raise KdscaleError(
            f"{store}/{PROGRESS_KEY} was not written by this version of kdscale.",
            "Use the version that runs the run; deleting the file harms no run.",
        ) from error


class ProgressFile:
    """Writer of a run's progress, in a thread for as long as the block lasts.

    The driver's state at the end of the block is `complete`, or `failed` or `stopped` with the
    error as its cause.
    """

    def __init__(
        self,
        store: Store,
        seconds: float = BEAT_SECONDS,
        check: Callable[[], None] = lambda: None,
    ) -> None:
        """Make a writer to `store`.

        Args:
            store: The run's output.
            seconds: Time between two writes.
            check: Raises KdscaleError if this driver may not write, because another has the run.
        """
        self._store = store
        self._check = check
        self._seconds = seconds
        self._lock = threading.Lock()
        self._wake = threading.Event()
        self._ended = False
        self._stage: RunningStage | None = None
        self._thread = threading.Thread(target=self._run, name="progress file", daemon=True)

    def __enter__(self) -> Self:
        before = self._before()
        self._stages = dict(before.stages)
        self._earlier = tuple(map(_as_lost, before.drivers))[-(_DRIVERS_KEPT - 1) :]
        now = time.time()
        self._driver = Driver(
            host=socket.gethostname(), pid=os.getpid(), job=ray_job(), started=now, heard=now
        )
        self._thread.start()
        self._wake.set()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        end = {"state": _state(error), "cause": _cause(error)}
        with self._lock:
            self._driver = self._driver.model_copy(update=end)
            self._ended = True
        self._wake.set()
        self._thread.join(_JOIN_SECONDS)

    def begin(self, stage: RunningStage, fingerprint: str) -> None:
        """Follow `stage` from here on.

        The progress of earlier attempts at the same fingerprint stays until workers report again.
        """
        with self._lock:
            self._follow()
            old = self._stages.get(stage.name)
            if old is None or old.fingerprint != fingerprint:
                old = RecordedProgress(fingerprint=fingerprint, started=0.0)
            started = time.time()
            self._kept = replace(old, started=started, tokens_per_second=0.0, seconds_left=None)
            self._stages[stage.name] = self._kept
            self._stage = stage
            self._driver = self._driver.model_copy(update={"stage": stage.name})
        self._wake.set()

    def record(self) -> ProgressRecord:
        """Return the present progress, as the next beat would write it."""
        with self._lock:
            return self._present()

    def _run(self) -> None:
        while True:
            self._wake.wait(self._seconds)
            self._wake.clear()
            with self._lock:
                ended = self._ended
                content = self._present().model_dump_json(indent=1).encode()
            try:
                self._check()
                self._store.put(PROGRESS_KEY, content)
            except KdscaleError as error:
                log.warning("%s belongs to another driver: %s", PROGRESS_KEY, error.problem)
                return
            except OSError as error:
                log.warning("%s was not written: %s", PROGRESS_KEY, redact(str(error)))
            if ended:
                return

    def _present(self) -> ProgressRecord:
        self._follow()
        self._driver = self._driver.model_copy(update={"heard": time.time()})
        return ProgressRecord(drivers=(*self._earlier, self._driver), stages=dict(self._stages))

    def _follow(self) -> None:
        """Add the present stage's progress to that of the drivers before."""
        if self._stage is None:
            return
        kept, latest = self._kept, self._stage.latest
        new = tuple(replace(f, reason=redact(f.reason)) for f in latest.failures)
        progress = replace(kept, **vars(latest)) if latest.updated else kept
        self._stages[self._stage.name] = replace(
            progress,
            failed_groups=kept.failed_groups + latest.failed_groups,
            failures=(*kept.failures, *new)[-FAILURES_KEPT:],
        )

    def _before(self) -> ProgressRecord:
        """Return the progress that earlier drivers wrote; none if it cannot be read."""
        try:
            return read_progress(self._store) or ProgressRecord()
        except KdscaleError as error:
            log.warning("%s It is written anew.", error.problem)
            return ProgressRecord()


def _as_lost(driver: Driver) -> Driver:
    """Mark a previous driver that is still `running` as lost."""
    if driver.state != "running":
        return driver
    return driver.model_copy(update={"state": "lost", "cause": "it ended without a word"})


def _state(error: BaseException | None) -> str:
    """Return the state of a driver that ends with `error`."""
    if error is None:
        return "complete"
    return "stopped" if isinstance(error, KeyboardInterrupt | StoppedError) else "failed"


def _cause(error: BaseException | None) -> str:
    """Return a line on the error that ended the driver, without secrets."""
    if error is None:
        return ""
    known = explain(error)
    text = str(error) if known is None else known.problem
    first = next(iter(text.strip().splitlines()), "")
    return redact(first if known else f"{type(error).__name__}: {first}".rstrip(": "))
