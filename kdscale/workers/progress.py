"""Progress of a stage: the record of how far it is, and its display in the driver's terminal.

A terminal gets a bar; a log file gets a plain line now and then.
"""

import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    pass

POLL_SECONDS = 0.5
LINE_SECONDS = 15.0


@dataclass(frozen=True)
class Failure:
    """A worker group that failed."""

    time: float
    """Unix seconds."""

    reason: str


@dataclass(frozen=True, kw_only=True)
class StageProgress:
    """Progress of a stage: in the workers' channel, in `progress.json` and in `kdscale status`."""

    done: int = 0
    total: int = 0
    tokens: int = 0
    note: str = ""
    """The name of what is counted, or of the present work."""

    updated: float = 0.0
    """Unix seconds of the last report; 0 before the first."""

    tokens_per_second: float = 0.0
    """Since the present attempt started; 0 if not known yet."""

    seconds_left: float | None = None
    """At the pace of the present attempt; None if not known yet."""

    failed_groups: int = 0
    failures: tuple[Failure, ...] = ()
    """The newest of them."""

    def __str__(self) -> str:
        parts = [f"{self.done:,}/{self.total:,}"]
        if self.tokens_per_second:
            parts.append(f"{self.tokens_per_second:,.0f} tokens/s")
        if self.seconds_left is not None:
            parts.append(f"{self.seconds_left:,.0f} s left")
        if self.note:
            parts.append(self.note)
        return ", ".join(parts)


class RunningStage:
    """The driver's side of a running stage.

    Attributes:
        name: The stage's name.
        run: The name of its run.
        stop_requested: Whether the stage should save its state and end. It raises if the run has
            to end now.
        channel: Where its progress and its lines come from: of this process, until worker groups
            put in theirs.
        latest: The progress when it was last drained.
    """

    def __init__(
        self, name: str, stop_requested: Callable[[], bool] = lambda: False, run: str = ""
    ) -> None:
        from kdscale.workers.channel import Channel

        self.name = name
        self.run = run
        self.stop_requested = stop_requested
        self.channel: Channel = Channel()
        self.latest = StageProgress()

    def update(self, done: int, total: int, note: str = "") -> None:
        """Report the progress of work in the driver itself."""
        self.channel.update(done, total, 0, note)

    def drain(self) -> list[str]:
        """Bring `latest` up to date and return the lines since the last call."""
        drained = self.channel.drain()
        if drained is None:
            return []
        self.latest, lines = drained
        return lines


@contextmanager
def stage_progress(
    name: str, stop_requested: Callable[[], bool] = lambda: False, run: str = ""
) -> Iterator[RunningStage]:
    """Show the stage's progress and print its lines until the block ends. See RunningStage."""
    stage = RunningStage(name, stop_requested, run)
    end = threading.Event()
    show = _show_bar if sys.stderr.isatty() else _print_lines
    thread = threading.Thread(target=show, args=(stage, end), daemon=True)
    thread.start()
    try:
        yield stage
    finally:
        end.set()
        thread.join(timeout=30)


def _print_lines(stage: RunningStage, end: threading.Event) -> None:
    """Print workers' lines at once and the progress now and then."""
    shown, due, ended = StageProgress(), 0.0, False
    while not ended:
        ended = end.wait(POLL_SECONDS)
        for line in stage.drain():
            print(f"{stage.name}: {line}", flush=True)
        progress = stage.latest
        if progress.total and progress != shown and time.monotonic() >= due:
            print(f"{stage.name}: {progress}", file=sys.stderr, flush=True)
            shown, due = progress, time.monotonic() + LINE_SECONDS


def _show_bar(stage: RunningStage, end: threading.Event) -> None:
    """Draw a bar at the foot of the terminal, with the workers' lines above it."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn

    console, ended = Console(stderr=True), False
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[text]}"))
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task(stage.name, total=None, text="starting")
        while not ended:
            ended = end.wait(POLL_SECONDS)
            for line in stage.drain():
                console.print(f"{stage.name}: {line}", markup=False, highlight=False)
            if (progress := stage.latest).total:
                bar.update(task, total=progress.total, completed=progress.done, text=str(progress))
