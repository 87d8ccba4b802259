"""`progress.json`: who drives a run, when it was last heard of, and how far each stage is.

It is a key of its own beside `run.json`, so that the thread that writes it every few seconds and
the stages that write their record never meet. A store that fails is logged and tried again at the
next beat: no run waits for this, and none ends by it. Whoever reads it decides by the age of the
last beat whether the driver is still alive.
"""

import logging
import os
import socket
import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import Literal, Self

from pydantic import Field, ValidationError

from kdscale.config.base import Config
from kdscale.errors import ExitCode, KdscaleError
from kdscale.run.lock import ray_job
from kdscale.store import Store, explain
from kdscale.store.redact import redact
from kdscale.workers.progress import StageProgress

log = logging.getLogger(__name__)

PROGRESS_KEY = "progress.json"
BEAT_SECONDS = 10.0
LOST_SECONDS = 60.0
"""A driver that was not heard of for so long is taken for dead."""

_KEPT = 20  # drivers, and failures of a stage: the newest
_JOIN_SECONDS = 60.0


class Attempt(Config):
    """A worker group of a stage that failed."""

    time: float
    """Unix seconds."""

    reason: str


class StageProgressRecord(Config):
    """How far a stage is, as its workers told it last."""

    fingerprint: str
    started: float
    """Unix seconds: when the present driver, or the last, began with it."""

    updated: float = 0.0
    """Unix seconds of the workers' last word; 0 before the first."""

    done: int = 0
    total: int = 0
    tokens: int = 0
    note: str = ""
    tokens_per_second: float = 0.0
    seconds_left: float | None = None
    failed_groups: int = 0
    """Worker groups that failed, over all drivers."""

    failures: tuple[Attempt, ...] = ()
    """The newest of them."""


class Driver(Config):
    """A process that ran the stages, or tried to."""

    host: str
    pid: int
    job: str | None
    """Id of the Ray job that it was; None for a process started by hand."""

    started: float
    heard: float
    """Unix seconds, by the driver's own clock."""

    stage: str | None = None
    """The stage that it was at last."""

    state: Literal["running", "complete", "failed", "stopped", "lost"] = "running"
    """`stopped`: it was asked to. `lost` is what its successor says of one that wrote no end."""

    cause: str = ""


class ProgressRecord(Config):
    """The whole of `progress.json`."""

    drivers: tuple[Driver, ...] = ()
    """Oldest first."""

    stages: dict[str, StageProgressRecord] = Field(default_factory=dict)


def read_progress(store: Store) -> ProgressRecord | None:
    """What the run in `store` last said of itself; None where it never did."""
    try:
        data = store.get(PROGRESS_KEY)
    except FileNotFoundError:
        return None
    try:
        return ProgressRecord.model_validate_json(data)
    except ValidationError as error:
        raise KdscaleError(
            f"{store}/{PROGRESS_KEY} is not what this version of kdscale writes.",
            "Use the version that runs the run; deleting the file harms no run.",
        ) from error


class Heartbeat:
    """Tells the store of a run where it stands, from a thread, while the block goes on.

    How the block ends is told too: `complete`, or `failed` or `stopped` with what was raised.
    """

    def __init__(
        self,
        store: Store,
        seconds: float = BEAT_SECONDS,
        check: Callable[[], None] = lambda: None,
    ) -> None:
        """seconds: between two writes. `check` raises KdscaleError where this driver may not write
        any more, because another one has the run."""
        self._store = store
        self._check = check
        self._seconds = seconds
        self._lock = threading.Lock()
        self._wake = threading.Event()
        self._ended = False
        self._stage: tuple[str, StageProgress] | None = None
        self._thread = threading.Thread(target=self._run, name="heartbeat", daemon=True)

    def __enter__(self) -> Self:
        before = self._before()
        earlier = tuple(map(_as_lost, before.drivers))
        self._stages = dict(before.stages)
        self._earlier = earlier[-(_KEPT - 1) :]
        now = time.time()
        self._driver = Driver(
            host=socket.gethostname(),
            pid=os.getpid(),
            job=ray_job(),
            started=now,
            heard=now,
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
        end = {"state": _end(error), "cause": _cause(error)}
        with self._lock:
            self._driver = self._driver.model_copy(update=end)
            self._ended = True
        self._wake.set()
        self._thread.join(_JOIN_SECONDS)

    def begin(self, stage: str, fingerprint: str, progress: StageProgress) -> None:
        """From here on the run is at `stage`, as far as `progress` says.

        What earlier attempts at the same fingerprint reached stands until workers report again.
        """
        with self._lock:
            self._follow()
            old = self._stages.get(stage)
            known = old if old is not None and old.fingerprint == fingerprint else None
            fresh = known or StageProgressRecord(fingerprint=fingerprint, started=0.0)
            self._kept = fresh.failed_groups, fresh.failures
            pace = {"started": time.time(), "tokens_per_second": 0.0, "seconds_left": None}
            self._stages[stage] = fresh.model_copy(update=pace)
            self._stage = stage, progress
            self._driver = self._driver.model_copy(update={"stage": stage})
        self._wake.set()

    def _run(self) -> None:
        while True:
            self._wake.wait(self._seconds)
            self._wake.clear()
            with self._lock:
                ended = self._ended
                content = self._content()
            try:
                self._check()
                self._store.put(PROGRESS_KEY, content)
            except KdscaleError as error:
                log.warning("%s is another driver's: %s", PROGRESS_KEY, error.problem)
                return
            except OSError as error:
                log.warning("%s was not written: %s", PROGRESS_KEY, redact(str(error)))
            if ended:
                return

    def _content(self) -> bytes:
        self._follow()
        self._driver = self._driver.model_copy(update={"heard": time.time()})
        record = ProgressRecord(drivers=(*self._earlier, self._driver), stages=self._stages)
        return record.model_dump_json(indent=1).encode()

    def _follow(self) -> None:
        """Take over what the present stage's board said last."""
        if self._stage is None:
            return
        name, progress = self._stage
        snapshot = progress.latest
        count, failures = self._kept
        seen = tuple(Attempt(time=f.time, reason=redact(f.reason)) for f in snapshot.failures)
        update = {
            "failed_groups": count + len(seen),
            "failures": (*failures, *seen)[-_KEPT:],
        }
        if snapshot.updated:
            update |= {
                "updated": snapshot.updated,
                "done": snapshot.done,
                "total": snapshot.total,
                "tokens": snapshot.tokens,
                "note": snapshot.note,
                "tokens_per_second": snapshot.rate(),
                "seconds_left": snapshot.seconds_left(),
            }
        self._stages[name] = self._stages[name].model_copy(update=update)

    def _before(self) -> ProgressRecord:
        """What earlier drivers wrote; nothing where it is not to be read."""
        try:
            return read_progress(self._store) or ProgressRecord()
        except KdscaleError as error:
            log.warning("%s It is written anew.", error.problem)
            return ProgressRecord()


def _as_lost(driver: Driver) -> Driver:
    """An earlier driver that never wrote its end has none to write any more."""
    if driver.state != "running":
        return driver
    return driver.model_copy(update={"state": "lost", "cause": "it ended without a word"})


def _end(error: BaseException | None) -> str:
    """The state of a driver that ends with `error`."""
    if error is None:
        return "complete"
    asked = (
        isinstance(error, KeyboardInterrupt) or getattr(error, "exit_code", 0) == ExitCode.STOPPED
    )
    return "stopped" if asked else "failed"


def _cause(error: BaseException | None) -> str:
    """A line on what ended the driver, fit for everyone to read."""
    if error is None:
        return ""
    known = explain(error)
    text = str(error) if known is None else known.problem
    first = next(iter(text.strip().splitlines()), "")
    return redact(first if known else f"{type(error).__name__}: {first}".rstrip(": "))
