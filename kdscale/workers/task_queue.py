"""Where the ranks of worker groups find what to do: one task after the other, a stage each.

Kept by an actor beside the driver, whose process starts in a third of the time without torch. It
outlives the groups: it counts how often a task was begun, and keeps the error that no restart can
mend.
"""

from dataclasses import dataclass
from typing import Any, Literal

from kdscale.workers.progress import Reporter


@dataclass(frozen=True)
class Turn:
    """A rank's turn at a task."""

    number: int  # of the task, from 0
    attempt: int  # groups that began it before
    task: Any


class Desk:
    """Of the groups that Ray Train starts one after the other for one call of `fit`."""

    def __init__(self) -> None:
        self._task: Any = None
        self._reporter: Reporter | None = None
        self._number = -1
        self._groups: list[str] = []
        self._error: Exception | None = None
        self._through: dict[str, set[int]] = {}
        self._is_through = False
        self._is_closed = False

    def put(self, task: Any, reporter: Reporter) -> None:
        """The next task, once the one before is done. `reporter`: where its stage is told of the
        group."""
        self._task, self._reporter = task, reporter
        self._number += 1
        self._groups = []
        self._through, self._is_through = {}, False

    def close(self) -> None:
        """There will be no more tasks."""
        self._is_closed = True

    def next(self, group: str, after: int) -> Turn | Literal["wait", "end"]:
        """What a rank of `group` is to do that has done task `after`, -1 where it has done none."""
        # Ray Train restarts a group whatever its error was; a mistake in a config stays one.
        if self._is_closed or self._error is not None:
            return "end"
        # A new group that comes when all is done has nothing to do, though it has done nothing.
        if after == self._number or self._is_through:
            return "wait"
        if group not in self._groups:
            self._groups.append(group)
        return Turn(self._number, self._groups.index(group), self._task)

    def through(self, group: str, rank: int, size: int) -> None:
        """A rank of a group of `size` has done the task."""
        done = self._through.setdefault(group, set())
        done.add(rank)
        self._is_through |= len(done) == size

    def look(self) -> tuple[bool, Exception | None]:
        """Whether all ranks of a group have done the task; the error that ends it, if there was
        one."""
        return self._is_through, self._error

    def starts(self) -> int:
        """How many groups have begun the task."""
        return len(self._groups)

    def reporter(self) -> Reporter | None:
        """Of the present task, or of the last."""
        return self._reporter

    def give_up(self, error: Exception) -> None:
        """No group is to try the task again, nor to do another."""
        self._error = self._error or error
