"""Progress of a command's own work on stderr: a bar in a terminal, else a line now and then."""

import sys
import time
from types import TracebackType
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from rich.progress import Progress

LINE_SECONDS = 15.0


class WorkProgress:
    """A bar, or lines, for as long as the block lasts."""

    def __init__(self, unit: str) -> None:
        """Count `unit`, a plural such as "positions"."""
        self._unit = unit
        self._start = time.monotonic()
        self._due = self._start + LINE_SECONDS
        self._bar = _make_bar() if sys.stderr.isatty() else None

    def __enter__(self) -> Self:
        if self._bar is not None:
            self._task = self._bar.add_task("", total=None)
            self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def say(self, line: str) -> None:
        """Print what is done next, from whose start the time left is counted."""
        self._start = time.monotonic()
        self._due = self._start + LINE_SECONDS
        if self._bar is None:
            print(line, file=sys.stderr, flush=True)
        else:
            self._bar.console.print(line, markup=False, highlight=False)
            self._bar.reset(self._task, total=None)

    def update(self, done: int, total: int) -> None:
        """Show that `done` of `total` are done."""
        if self._bar is not None:
            self._bar.update(self._task, completed=done, total=total, description=self._unit)
            return
        now = time.monotonic()
        if now >= self._due and done:
            left = (now - self._start) / done * (total - done)
            line = f"{done:,}/{total:,} {self._unit}, {left:,.0f} s left"
            print(line, file=sys.stderr, flush=True)
            self._due = now + LINE_SECONDS


def _make_bar() -> "Progress":
    """Return a bar that leaves nothing behind."""
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
    return Progress(*columns, console=Console(stderr=True), transient=True)
