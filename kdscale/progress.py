"""How far a stage is: updates from any process, drawn in the terminal of the one that started it.

Workers send their updates to a small Ray actor, because the driver is blocked in the trainer and
may be on another machine. A terminal gets a bar; a log file gets a plain line now and then.
"""

import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from kdscale.ray_session import beside_driver

POLL_SECONDS = 0.5
LINE_SECONDS = 15.0


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

    def rate(self) -> float:
        """Tokens a second since the attempt started, 0 where nothing is known yet."""
        seconds = self.updated - self.started
        return (self.tokens - self.first_tokens) / seconds if seconds > 0 else 0.0

    def seconds_left(self) -> float | None:
        """At the pace of this attempt; None where nothing is known yet."""
        seconds, gained = self.updated - self.started, self.done - self.first_done
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
        # Going back means that the work was resumed from an earlier point.
        if old.started == 0 or done < old.done or note != old.note:
            self._snapshot = Snapshot(done, total, tokens, note, now, now, done, tokens)
        else:
            start = (old.started, now, old.first_done, old.first_tokens)
            self._snapshot = Snapshot(done, total, tokens, note, *start)

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


class StageProgress:
    """The driver's side of one stage."""

    def __init__(self, stage: str) -> None:
        self.stage = stage
        self._board = Board()
        self._actor: Any = None

    def update(self, done: int, total: int, note: str = "") -> None:
        """For work in the driver itself."""
        self._board.update(done, total, 0, note)

    def reporter(self) -> Reporter:
        """For workers."""

        if self._actor is None:
            self._actor = beside_driver(Board).remote()
        return Reporter(self._actor)

    def take(self) -> tuple[Snapshot, list[str]]:
        """See Board; from wherever it is kept."""
        if self._actor is None:
            return self._board.take()
        import ray

        try:
            taken: tuple[Snapshot, list[str]] = ray.get(self._actor.take.remote(), timeout=10)
        except (ray.exceptions.RayError, TimeoutError):
            # The actor's node may be gone or busy: progress is not worth failing a stage for.
            return Snapshot(), []
        return taken


@contextmanager
def stage_progress(stage: str) -> Iterator[StageProgress]:
    """Draws the stage's progress and prints its lines until the block ends."""
    progress = StageProgress(stage)
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
