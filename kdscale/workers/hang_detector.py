"""Detector of hung ranks: each rank sends heartbeats, and the driver kills those that hang.

Heartbeats come from a thread beside the work: a process that is stopped, cut off or dead sends
none. Each says how far the work is, so that a rank whose process is alive but whose work stands
still is found too. A rank in a collective waits for another one and is not the cause.
"""

import faulthandler
import os
import platform
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

# So often that several may be lost before a rank counts as hung.
_BEATS_A_TERM = 5
_INTERVAL_SECONDS = 5.0

_PACKAGE = os.path.dirname(os.path.dirname(__file__))


@dataclass(frozen=True)
class RankHeartbeat:
    """Progress of a rank. `attempt` counts the groups of the stage from 0."""

    rank: int
    attempt: int
    node: str = field(default_factory=platform.node)
    pid: int = field(default_factory=os.getpid)
    place: str = "its start"  # what it has done last
    beats: int = 0  # how often it has made progress
    idle: float = 0.0  # seconds since it last did; 0 until it first has
    waits: bool = False  # whether it is in a collective
    frame: str = ""  # where its work stands, once it has been idle for some time


@dataclass(frozen=True)
class HungRank:
    """A rank that hangs, with its last heartbeat and the seconds without progress."""

    heartbeat: RankHeartbeat
    seconds: float
    process_alive: bool  # whether its process still sends heartbeats

    def __str__(self) -> str:
        last, alive = self.heartbeat, self.process_alive
        what = "no progress" if alive else "no heartbeat"
        where = f", in {last.frame}" if alive and last.frame else ""
        return (
            f"rank {last.rank} (pid {last.pid} on {last.node}) hangs: {what} since {last.place}, "
            f"for {self.seconds:.0f} s{where}"
        )


class HangDetector:
    """The newest heartbeat of every rank of the present group."""

    def __init__(self) -> None:
        self._seen: dict[int, tuple[RankHeartbeat, float]] = {}
        self._attempt = -1
        self._closed = False

    def see(self, heartbeat: RankHeartbeat, now: float) -> None:
        """Take in a heartbeat that came at `now`, in seconds of any clock.

        The first one of a newer group ends the watch over the older group.
        """
        if heartbeat.attempt > self._attempt:
            self.close()
            self._attempt, self._closed = heartbeat.attempt, False
        if heartbeat.attempt == self._attempt and not self._closed:
            self._seen[heartbeat.rank] = heartbeat, now

    def leave(self, rank: int) -> None:
        """Stop watching a rank that has ended its work."""
        self._seen.pop(rank, None)

    def close(self) -> None:
        """Stop watching the present group: late heartbeats of its ranks do not count."""
        self._seen.clear()
        self._closed = True

    def present(self) -> int:
        """Return how many ranks of the present group are at work."""
        return len(self._seen)

    def hung(self, seconds: float, now: float) -> list[HungRank]:
        """Return the ranks that keep the group from its work for more than `seconds`.

        First those that send no heartbeats at all. Else, of the ranks without progress, those that
        wait for no other and are least far; all of them only if every rank waits.
        """
        silent = [
            HungRank(last, now - at, process_alive=False)
            for last, at in self._seen.values()
            if now - at > seconds
        ]
        if silent:
            return silent
        idle = [
            HungRank(last, last.idle, process_alive=True)
            for last, _ in self._seen.values()
            if last.idle > seconds
        ]
        busy = [each for each in idle if not each.heartbeat.waits]
        if busy:
            least = min(each.heartbeat.beats for each in busy)
            return [each for each in busy if each.heartbeat.beats == least]
        return idle if len(idle) == len(self._seen) else []


class HeartbeatThread:
    """Sender of a rank's heartbeats; made in the thread that works.

    `send` hands a heartbeat over and returns the signal to the rank, "" for none; an error of it
    ends the thread. `seconds` is the time after which a silent rank counts as hung. After half of
    it without progress the stacks of all the process's threads are written to stderr, once.
    """

    def __init__(
        self, rank: int, attempt: int, seconds: float, send: Callable[[RankHeartbeat], str]
    ) -> None:
        self.signal = ""
        """The answer to the last heartbeat."""
        self._last = RankHeartbeat(rank, attempt)
        self._send = send
        self._patience = seconds / 2
        self._interval = min(_INTERVAL_SECONDS, seconds / _BEATS_A_TERM)
        self._moved: float | None = None
        self._dumped = 0
        self._worker = threading.get_ident()
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._run, name="heartbeat", daemon=True)
        self._thread.start()

    def beat(self, place: str) -> None:
        """Note that the work has come to `place`."""
        self._moved = time.monotonic()
        self._last = replace(self._last, place=place, beats=self._last.beats + 1)

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Mark a block in which this rank waits for others."""
        self._last = replace(self._last, waits=True)
        try:
            yield
        finally:
            self._last = replace(self._last, waits=False)

    def stop(self) -> None:
        """Send no more heartbeats: when this returns, the last one has been handed over."""
        self._end.set()
        self._thread.join()

    def _run(self) -> None:
        # The first at once: a signal from the time of the start is known before any work.
        while not self._end.is_set():
            self.signal = self._send(self._now())
            self._end.wait(self._interval)

    def _now(self) -> RankHeartbeat:
        last, moved = self._last, self._moved
        idle = 0.0 if moved is None else time.monotonic() - moved
        if idle < self._patience:
            return replace(last, idle=idle)
        if self._dumped != last.beats:
            self._dumped = last.beats
            faulthandler.dump_traceback(all_threads=True)
        return replace(last, idle=idle, frame=self._frame())

    def _frame(self) -> str:
        """Return the innermost line of this package at which the work stands, or of all."""
        stack = traceback.extract_stack(sys._current_frames().get(self._worker))
        ours = [frame for frame in stack if frame.filename.startswith(_PACKAGE)]
        last = (ours or stack)[-1]
        return f"{os.path.basename(last.filename)}:{last.lineno} {last.name}"
