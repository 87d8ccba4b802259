"""How far a stage is: updates from any process, drawn in the terminal of the one that started it.

Workers send their updates to a small Ray actor, because the driver is blocked in the trainer and
may be on another machine. A terminal gets a bar; a log file gets a plain line now and then. The
actor also takes the ranks' signs of life, and answers each with what the stage asks of them.
"""

import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Literal

from kdscale.workers.hang_detector import HangDetector, HungRank, RankHeartbeat
from kdscale.workers.ray_session import beside_driver

POLL_SECONDS = 0.5
LINE_SECONDS = 15.0

Wish = Literal["", "stop", "regroup"]
"""What a stage asks of its ranks: save what they have and leave, for good, or to be started again
as a group of another size."""


@dataclass(frozen=True)
class Failure:
    """An attempt of a worker group that did not come to its end: when (Unix seconds), and why."""

    time: float
    reason: str


@dataclass(frozen=True)
class Snapshot:
    """Where a stage stands at `updated` (Unix seconds), and where this attempt at it `started`."""

    done: int = 0
    total: int = 0
    tokens: int = 0
    note: str = ""
    started: float = 0.0
    updated: float = 0.0
    first_done: int = 0
    first_tokens: int = 0
    failures: tuple[Failure, ...] = ()

    @property
    def seconds(self) -> float:
        """From the attempt's first report to its last; 0 before the first."""
        return self.updated - self.started if self.started else 0.0

    def rate(self) -> float:
        """Tokens a second since the attempt started, 0 where nothing is known yet."""
        seconds = self.seconds
        return (self.tokens - self.first_tokens) / seconds if seconds > 0 else 0.0

    def seconds_left(self) -> float | None:
        """At the pace of this attempt; None where nothing is known yet."""
        seconds, gained = self.seconds, self.done - self.first_done
        return seconds / gained * (self.total - self.done) if seconds and gained > 0 else None

    def __str__(self) -> str:
        parts = [f"{self.done:,}/{self.total:,}"]
        if self.rate():
            parts.append(f"{self.rate():,.0f} tokens/s")
        left = self.seconds_left()
        if left is not None:
            parts.append(f"{left:,.0f} s left")
        if self.note:
            parts.append(self.note)
        return ", ".join(parts)


class ProgressActor:
    """Holds the newest snapshot and lines to print; a Ray actor where workers report to it."""

    def __init__(self) -> None:
        self._snapshot = Snapshot()
        self._lines: list[str] = []
        self._watch = HangDetector()
        self._actors: dict[int, Any] = {}
        self._wish: Wish = ""
        self._left = 0

    def update(self, done: int, total: int, tokens: int, note: str) -> None:
        """Replace the snapshot. The first call starts the clock, and so does one for other work."""
        now, old = time.time(), self._snapshot
        # Going back means that the work was resumed from an earlier point. Tokens alone go back
        # where an attempt counts its own: a capture that resumes where all was committed.
        resumed = done < old.done or tokens < old.tokens
        if old.started == 0 or resumed or note != old.note:
            old = replace(old, started=now, first_done=done, first_tokens=tokens)
        self._snapshot = replace(old, done=done, total=total, tokens=tokens, note=note, updated=now)

    def fail(self, reason: str) -> None:
        """Note that the worker group failed. Its next attempt starts the clock again."""
        failure = Failure(time.time(), reason)
        old = self._snapshot
        self._snapshot = replace(old, started=0.0, failures=(*old.failures, failure))

    def say(self, line: str) -> None:
        """Add a line for the terminal."""
        self._lines.append(line)

    def take(self) -> tuple[Snapshot, list[str]]:
        """The newest snapshot, and the lines since the last call."""
        lines, self._lines = self._lines, []
        return self._snapshot, lines

    def join(self, sign: RankHeartbeat, actor: Any) -> None:
        """A rank begins, as `actor`."""
        self._actors[sign.rank] = actor
        self._watch.see(sign, time.monotonic())

    def beat(self, sign: RankHeartbeat) -> Wish:
        """A rank's sign of life; what is asked of it."""
        self._watch.see(sign, time.monotonic())
        return self._wish

    def leave(self, rank: int, fulfilled: bool) -> None:
        """A rank is through; `fulfilled` where it left because it was asked to."""
        self._watch.leave(rank)
        self._left += fulfilled

    def left(self) -> int:
        """How many ranks have left because they were asked to."""
        return self._left

    def ask(self, wish: Wish) -> None:
        """Ask something of the ranks. To stop for good is never taken back."""
        if self._wish != "stop":
            self._wish = wish
        self._left = 0

    def close(self) -> None:
        """The present group has failed."""
        self._watch.close()

    def present(self) -> int:
        """How many ranks are at work."""
        return self._watch.present()

    def silent(self, seconds: float) -> list[tuple[HungRank, Any]]:
        """See Watch; each with the rank's actor."""
        found = self._watch.silent(seconds, time.monotonic())
        return [(each, self._actors[each.sign.rank]) for each in found]


class Reporter:
    """What a worker holds; can be sent to it. Nothing waits for the driver to see an update."""

    def __init__(self, actor: Any) -> None:
        self._actor = actor

    def update(self, done: int, total: int, tokens: int, note: str) -> None:
        """See Board."""
        self._actor.update.remote(done, total, tokens, note)

    def say(self, line: str) -> None:
        """See Board. Waits until the line is kept: the next thing may be the worker's end."""
        self._call("say", line)

    def join(self, sign: RankHeartbeat) -> None:
        """See Board. Called in the worker that the sign is of."""
        import ray

        self._call("join", sign, ray.get_runtime_context().current_actor)

    def beat(self, sign: RankHeartbeat) -> Wish:
        """See Board."""
        wish: Wish = self._call("beat", sign)
        return wish

    def leave(self, rank: int, fulfilled: bool) -> None:
        """See Board."""
        self._call("leave", rank, fulfilled)

    def left(self) -> int:
        """See Board."""
        return int(self._call("left"))

    def ask(self, wish: Wish) -> None:
        """See Board."""
        self._call("ask", wish)

    def close(self) -> None:
        """See Board."""
        self._call("close")

    def present(self) -> int:
        """See Board."""
        return int(self._call("present"))

    def silent(self, seconds: float) -> list[tuple[HungRank, Any]]:
        """See Board."""
        found: list[tuple[HungRank, Any]] = self._call("silent", seconds)
        return found

    def _call(self, name: str, *arguments: Any) -> Any:
        import ray

        return ray.get(getattr(self._actor, name).remote(*arguments))

    def fail(self, reason: str) -> None:
        """See Board."""
        self._call("fail", reason)


class StageProgress:
    """The driver's side of one stage. `asked_to_stop` says whether the stage is to wind down, and
    raises where the run must end now; `run` is the name of its run."""

    def __init__(
        self, stage: str, asked_to_stop: Callable[[], bool] = lambda: False, run: str = ""
    ) -> None:
        self.stage = stage
        self.asked_to_stop = asked_to_stop
        self.run = run
        self.latest = Snapshot()
        self._board = ProgressActor()
        self._actor: Any = None

    def update(self, done: int, total: int, note: str = "") -> None:
        """For work in the driver itself."""
        self._board.update(done, total, 0, note)

    def reporter(self) -> Reporter:
        """For workers."""
        if self._actor is None:
            self._actor = beside_driver(ProgressActor).remote()
        return Reporter(self._actor)

    def take(self) -> tuple[Snapshot, list[str]]:
        """See Board; from wherever it is kept. The snapshot stays as `latest`."""
        self.latest, lines = self._take()
        return self.latest, lines

    def _take(self) -> tuple[Snapshot, list[str]]:
        if self._actor is None:
            return self._board.take()
        import ray

        try:
            taken: tuple[Snapshot, list[str]] = ray.get(self._actor.take.remote(), timeout=10)
        except (ray.exceptions.RayError, TimeoutError):
            # The actor's node may be gone or busy: progress is not worth failing a stage for.
            return self.latest, []
        return taken


@contextmanager
def stage_progress(
    stage: str, asked_to_stop: Callable[[], bool] = lambda: False, run: str = ""
) -> Iterator[StageProgress]:
    """Draws the stage's progress and prints its lines until the block ends. See StageProgress."""
    progress = StageProgress(stage, asked_to_stop, run)
    stop = threading.Event()
    draw = _draw_bar if sys.stderr.isatty() else _print_lines
    thread = threading.Thread(target=draw, args=(progress, stop), daemon=True)
    thread.start()
    try:
        yield progress
    finally:
        stop.set()
        thread.join(timeout=30)


def _print_lines(progress: StageProgress, stop: threading.Event) -> None:
    """Plain lines: what workers say at once, the progress now and then."""
    shown, due = Snapshot(), 0.0
    while True:
        ended = stop.wait(POLL_SECONDS)
        snapshot, lines = progress.take()
        for line in lines:
            print(f"{progress.stage}: {line}", flush=True)
        if snapshot.total and snapshot != shown and time.monotonic() >= due:
            print(f"{progress.stage}: {snapshot}", file=sys.stderr, flush=True)
            shown, due = snapshot, time.monotonic() + LINE_SECONDS
        if ended:
            return


def _draw_bar(progress: StageProgress, stop: threading.Event) -> None:
    """A bar at the foot of the terminal, with the workers' lines above it."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn

    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[text]}"))
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task(progress.stage, total=None, text="starting")
        while True:
            ended = stop.wait(POLL_SECONDS)
            snapshot, lines = progress.take()
            for line in lines:
                console.print(f"{progress.stage}: {line}", markup=False, highlight=False)
            if snapshot.total:
                bar.update(task, total=snapshot.total, completed=snapshot.done, text=str(snapshot))
            if ended:
                return
