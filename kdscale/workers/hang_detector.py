"""Which ranks of a worker group still get on: a sign of life from each, and who is silent.

A rank gives a sign every few seconds, from a thread beside its work: a process that is stopped, cut
off or gone gives none. The sign says how far the work is, so that a rank whose process lives but
whose work stands still is found too. A rank that waits in a collective waits for another one, and
is not the one to blame.
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

# A sign comes so often that several may be lost before a rank counts as silent.
_SIGNS_A_TERM = 5
_INTERVAL_SECONDS = 5.0

_PACKAGE = os.path.dirname(__file__)


@dataclass(frozen=True)
class RankHeartbeat:
    """How far a rank is. `attempt` counts the groups of the stage from 0."""

    rank: int
    attempt: int
    node: str = field(default_factory=platform.node)
    pid: int = field(default_factory=os.getpid)
    place: str = "its start"  # what it has done last
    beats: int = 0  # how often it has got further
    idle: float = 0.0  # seconds since it last did; 0 until it first has
    waits: bool = False  # whether it is in a collective
    frame: str = ""  # where its work stands, once it is idle for some time


@dataclass(frozen=True)
class HungRank:
    """A rank that hangs: its last sign, and for how many seconds nothing has come of it."""

    sign: RankHeartbeat
    seconds: float
    breathes: bool  # whether its process still gives signs

    def __str__(self) -> str:
        sign = self.sign
        what = "its work stands still" if self.breathes else "it gives no sign of life"
        where = f", in {sign.frame}" if self.breathes and sign.frame else ""
        return (
            f"rank {sign.rank} (pid {sign.pid} on {sign.node}) hangs: {what} since {sign.place}, "
            f"for {self.seconds:.0f} s{where}"
        )


class HangDetector:
    """The newest sign of every rank of the present group."""

    def __init__(self) -> None:
        self._signs: dict[int, tuple[RankHeartbeat, float]] = {}
        self._attempt = -1
        self._closed = False

    def see(self, sign: RankHeartbeat, now: float) -> None:
        """Take in a sign that came at `now`, in seconds of any clock; a newer group's first one
        ends the watch over the older group."""
        if sign.attempt > self._attempt:
            self.close()
            self._attempt, self._closed = sign.attempt, False
        if sign.attempt == self._attempt and not self._closed:
            self._signs[sign.rank] = sign, now

    def leave(self, rank: int) -> None:
        """The rank is through with its work."""
        self._signs.pop(rank, None)

    def close(self) -> None:
        """The present group has failed: what its ranks still say counts no more."""
        self._signs.clear()
        self._closed = True

    def present(self) -> int:
        """How many ranks of the present group are at work."""
        return len(self._signs)

    def silent(self, seconds: float, now: float) -> list[HungRank]:
        """The ranks to blame where nothing has come of some for more than `seconds`.

        First those that give no signs at all. Else, of the ranks that stand still, those that wait
        for nobody and have come least far; all of them only where every rank waits.
        """
        mute = [
            HungRank(sign, now - at, breathes=False)
            for sign, at in self._signs.values()
            if now - at > seconds
        ]
        if mute:
            return mute
        still = [
            HungRank(sign, sign.idle, breathes=True)
            for sign, _ in self._signs.values()
            if sign.idle > seconds
        ]
        busy = [each for each in still if not each.sign.waits]
        if busy:
            least = min(each.sign.beats for each in busy)
            return [each for each in busy if each.sign.beats == least]
        return still if len(still) == len(self._signs) else []


class HeartbeatThread:
    """A rank's own side: notes how far its work is, and sends a sign of it every few seconds.

    Made in the thread that works. `send` hands a sign over and gives what is asked of the rank, ""
    for nothing; its errors end the signs. seconds: after how many a silent rank counts as hanging.
    After half of them without progress all of the process's stacks go to stderr, once.
    """

    def __init__(
        self, rank: int, attempt: int, seconds: float, send: Callable[[RankHeartbeat], str]
    ):
        self.asked = ""
        """What was asked of this rank when it last gave a sign."""
        self._sign = RankHeartbeat(rank, attempt)
        self._send = send
        self._patience = seconds / 2
        self._interval = min(_INTERVAL_SECONDS, seconds / _SIGNS_A_TERM)
        self._moved: float | None = None
        self._dumped = 0
        self._works = threading.get_ident()
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._run, name="heart", daemon=True)
        self._thread.start()

    def beat(self, place: str) -> None:
        """The work has got further, to `place`."""
        self._moved = time.monotonic()
        self._sign = replace(self._sign, place=place, beats=self._sign.beats + 1)

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """The block waits for other ranks."""
        self._sign = replace(self._sign, waits=True)
        try:
            yield
        finally:
            self._sign = replace(self._sign, waits=False)

    def stop(self) -> None:
        """Give no more signs: when this returns, the last one has been handed over."""
        self._end.set()
        self._thread.join()

    def _run(self) -> None:
        # The first at once: what was asked while the process started is known before any work.
        while not self._end.is_set():
            self.asked = self._send(self._now())
            self._end.wait(self._interval)

    def _now(self) -> RankHeartbeat:
        sign, moved = self._sign, self._moved
        idle = 0.0 if moved is None else time.monotonic() - moved
        if idle < self._patience:
            return replace(sign, idle=idle)
        if self._dumped != sign.beats:
            self._dumped = sign.beats
            faulthandler.dump_traceback(all_threads=True)
        return replace(sign, idle=idle, frame=self._frame())

    def _frame(self) -> str:
        """Where the work stands: the innermost line of this package, or of all where none is."""
        stack = traceback.extract_stack(sys._current_frames().get(self._works))
        ours = [frame for frame in stack if frame.filename.startswith(_PACKAGE)]
        last = (ours or stack)[-1]
        return f"{os.path.basename(last.filename)}:{last.lineno} {last.name}"
