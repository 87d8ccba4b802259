"""How far a stage is: updates from any process, drawn in the terminal of the one that started it.

Workers send their updates to a small Ray actor, because the driver is blocked in the trainer and
may be on another machine. A terminal gets a bar; a log file gets a plain line now and then.
"""

import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

POLL_SECONDS = 0.5
LINE_SECONDS = 15.0


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


class Board:
    """Holds the newest snapshot and lines to print; a Ray actor where workers report to it."""

    def __init__(self) -> None:
        self._snapshot = Snapshot()
        self._lines: list[str] = []

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


class Reporter:
    """What a worker holds; can be sent to it. Nothing waits for the driver to see an update."""

    def __init__(self, actor: Any) -> None:
        self._actor = actor

    def update(self, done: int, total: int, tokens: int, note: str) -> None:
        """See Board."""
        self._actor.update.remote(done, total, tokens, note)

    def say(self, line: str) -> None:
        """See Board. Waits until the line is kept: the next thing may be the worker's end."""
        import ray

        ray.get(self._actor.say.remote(line))

    def fail(self, reason: str) -> None:
        """See Board. Waits until it is kept, for the same reason."""
        import ray

        ray.get(self._actor.fail.remote(reason))


class StageProgress:
    """The driver's side of one stage; `run` is the name of its run."""

    def __init__(self, stage: str, run: str = "") -> None:
        self.stage = stage
        self.run = run
        self.latest = Snapshot()
        self._board = Board()
        self._actor: Any = None

    def update(self, done: int, total: int, note: str = "") -> None:
        """For work in the driver itself."""
        self._board.update(done, total, 0, note)

    def reporter(self) -> Reporter:
        """For workers."""
        import ray

        if self._actor is None:
            self._actor = ray.remote(num_cpus=0)(Board).remote()
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
def stage_progress(stage: str, run: str = "") -> Iterator[StageProgress]:
    """Draws the stage's progress and prints its lines until the block ends."""
    progress = StageProgress(stage, run)
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
