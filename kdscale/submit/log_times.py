"""The time before every line of a job's log, and where a log stands since a time.

Ray keeps no time of a log's lines, so the job writes it: with KDSCALE_LOG_TIMES=1, which a
submission sets, every line that Python writes starts with its UTC time in seconds. What libraries
in C write bears none, and belongs to the time of the line before.
"""

import os
import re
import sys
import time
from datetime import UTC, datetime
from typing import IO, Any

from kdscale.errors import KdscaleError

VARIABLE = "KDSCALE_LOG_TIMES"
_STAMP = re.compile(r"^(\d{4}-\d{2}-\d{2}T\d{2}:\d{2}:\d{2})Z ", re.MULTILINE)


def stamp_output() -> None:
    """Put the time before every line of this process's stdout and stderr, if the job wants it."""
    if os.environ.get(VARIABLE) == "1":
        sys.stdout = _Stamped(sys.stdout)
        sys.stderr = _Stamped(sys.stderr)


def offset_since(log: str, since: float, started: float | None) -> int:
    """Return the offset of the part of `log` that was written at `since` (Unix seconds) or later.

    `started` is the job's own start: of a younger job all is wanted. KdscaleError where no line
    bears a time.
    """
    if started is not None and started >= since:
        return 0
    stamps = list(_STAMP.finditer(log))
    if not stamps:
        raise KdscaleError(
            "No line of the job's log bears a time, so none can be chosen by --since.",
            f"Leave out --since. Jobs bear times unless they are submitted with {VARIABLE}=0, or "
            "do not run kdscale.",
        )
    for stamp in stamps:
        if _seconds(stamp[1]) >= int(since):
            return stamp.start()
    return len(log)


def _seconds(text: str) -> float:
    return datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp()


class _Stamped:
    """A text stream that writes the time at the start of each line; in all else the one below."""

    def __init__(self, stream: IO[str]) -> None:
        self._stream = stream
        self._at_start = True

    def write(self, text: str) -> int:
        now = time.strftime("%Y-%m-%dT%H:%M:%SZ ", time.gmtime())
        lines = text.splitlines(keepends=True)
        for line in lines:
            # One write a line: threads may interleave lines, not parts of them.
            self._stream.write(now + line if self._at_start else line)
            self._at_start = line.endswith("\n")
        return len(text)

    def writelines(self, lines: Any) -> None:
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)
