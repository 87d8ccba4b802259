"""One screen for a run that is started in a terminal.

The run's status stands at the foot of the terminal, and the driver's own lines go by above it. All
else that is printed, by libraries, their subprocesses and workers, stays in a log file. To that
end the process's stdout and stderr are that file for as long as the run lasts.
"""

import io
import os
import re
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import TextIO

from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

from kdscale.errors import KdscaleError
from kdscale.run.status import RunStatus
from kdscale.run.status_text import status_lines
from kdscale.utils.local_cache_dir import local_cache_dir
from kdscale.utils.text_table import wrapped

_WORKERS_LINE = re.compile(r"\w+: rank \d+ of \d+ \(pid \d+\): (?P<text>.*)")
_REMOTE_SECONDS, _LOCAL_SECONDS = 10.0, 1.0


@contextmanager
def run_screen(name: str, look: Callable[[], RunStatus], is_local: bool) -> Iterator[None]:
    """Show the status that `look` returns until the block ends, where stdout is a terminal.

    Plain lines elsewhere, and in a terminal that cannot move its cursor (TERM=dumb).

    name: of the run. is_local: whether a look costs no request.
    """
    if not sys.stdout.isatty() or os.environ.get("TERM", "dumb") in ("dumb", "unknown"):
        yield
        return
    log = local_cache_dir("logs") / f"{name}-{os.getpid()}.log"
    with _redirected(log) as (terminal, file):
        console = Console(file=terminal, force_terminal=True)
        with Live(console=console, auto_refresh=False) as live:
            screen = _Screen(live, look, log)
            ended = threading.Event()
            every = _LOCAL_SECONDS if is_local else _REMOTE_SECONDS
            thread = threading.Thread(target=screen.follow, args=(ended, every), daemon=True)
            thread.start()
            try:
                with redirect_stdout(_Lines(file, screen.say)), redirect_stderr(file):
                    yield
            finally:
                ended.set()
                thread.join(timeout=30)


@contextmanager
def _redirected(log: Path) -> Iterator[tuple[TextIO, TextIO]]:
    """Let this process's stdout and stderr be the file; yield the terminal and the file."""
    kept = os.dup(1), os.dup(2)
    with (
        open(log, "a", buffering=1, encoding="utf-8", errors="replace") as file,
        open(os.dup(1), "w", encoding="utf-8") as terminal,
    ):
        sys.stdout.flush()
        sys.stderr.flush()
        try:
            os.dup2(file.fileno(), 1)
            if os.isatty(2):
                os.dup2(file.fileno(), 2)
            yield terminal, file
        finally:
            for place, descriptor in zip((1, 2), kept, strict=True):
                os.dup2(descriptor, place)
                os.close(descriptor)


class _Screen:
    """Display of a run at the foot of a terminal."""

    def __init__(self, live: Live, look: Callable[[], RunStatus], log: Path) -> None:
        self._live, self._look, self._log = live, look, log
        self._announced = False

    def follow(self, ended: threading.Event, seconds: float) -> None:
        """Look again every few seconds, and once after the end."""
        has_ended = False
        while not has_ended:
            has_ended = ended.wait(seconds)
            try:
                self.draw(self._look())
            except KdscaleError:
                continue  # there is no record before the first stage
            except Exception as error:  # a store that does not answer must not end a display
                print(f"screen: {error}", file=sys.__stderr__, flush=True)

    def draw(self, run: RunStatus) -> None:
        """Show a status."""
        width = self._live.console.width
        lines = [*status_lines(run, width), f"log: {self._log}"]
        shown = [Text(line, no_wrap=True, overflow="ellipsis") for line in lines]
        self._live.update(Group(*shown), refresh=True)

    def say(self, line: str) -> None:
        """Print a line of the driver's above the status; of the workers' only where W&B is."""
        found = _WORKERS_LINE.fullmatch(line)
        if found is not None:
            line = found["text"]
            if self._announced or not line.startswith("W&B: "):
                return
            self._announced = True
        text = wrapped(line, self._live.console.width, "  ")
        self._live.console.print(Text(text), soft_wrap=True)


class _Lines(io.TextIOBase):
    """A stdout that writes to the log file and hands on whole lines."""

    def __init__(self, log: TextIO, say: Callable[[str], None]) -> None:
        self._log, self._say = log, say
        self._rest = ""

    def write(self, text: str) -> int:
        """Write to the file; hand on what is a whole line by now."""
        self._log.write(text)
        *lines, self._rest = (self._rest + text).split("\n")
        for line in lines:
            self._say(line)
        return len(text)

    def flush(self) -> None:
        """Write what the file holds back."""
        self._log.flush()

    def fileno(self) -> int:
        """Return the file's descriptor, as subprocesses ask for it."""
        return self._log.fileno()
