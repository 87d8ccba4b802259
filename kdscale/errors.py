"""Errors that a user is meant to read, and the exit codes of the commands."""

from enum import IntEnum
from typing import ClassVar


class ExitCode(IntEnum):
    """Exit codes of `kdscale`. A job that failed with a code of its own, 1 to 125, passes it on."""

    OK = 0
    """Done; of `status`, also a job or run that is still going."""

    FAILED = 1
    """A job or run failed, or a check found something wrong."""

    USAGE = 2
    """Wrong usage, a bad config, or another KdscaleError."""

    UNREACHABLE = 3
    """No cluster answers at the address, or it refuses access."""

    NOT_FOUND = 4
    """No such job."""

    STOPPED = 5
    """The job or run was stopped as requested."""

    TIMED_OUT = 6
    """The time given with `--timeout` is over; the job continues."""

    LOCKED = 7
    """Another process holds the run."""

    DETACHED = 130
    """Ctrl-C: the command no longer follows the job, which continues."""


class KdscaleError(Exception):
    """An error that the user can fix: `problem` names the wrong values, `fix` says what to do.

    Raised before a worker starts wherever that is possible. The CLI prints it without a traceback
    and exits with `exit_code`.
    """

    exit_code: ClassVar[ExitCode] = ExitCode.USAGE

    def __init__(self, problem: str, fix: str) -> None:
        # Both go to Exception's args, so that the error survives the pickling between Ray
        # processes.
        super().__init__(problem, fix)
        self.problem = problem
        self.fix = fix

    def __str__(self) -> str:
        return f"{self.problem}\nFix: {self.fix}"


class StoreError(OSError):
    """A store that could not be used: `what` is wrong with it, and a `fix` as in a KdscaleError.

    An OSError rather than a KdscaleError, so that callers can wait for the store or do without it.
    `store.errors.explain` turns it into a KdscaleError where a user reads it. `passes` says whether
    the same call may succeed later.
    """

    def __init__(
        self, text: str, problem: str = "", what: str = "", fix: str = "", passes: bool = False
    ) -> None:
        super().__init__(text)
        # Not in args: OSError takes two or more for an errno and its text. A pickle has them.
        self.problem, self.what, self.fix, self.passes = problem, what, fix, passes


def last_line(error: BaseException | str) -> str:
    """Return the last line of an error's text: of a traceback, the exception that was raised."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if lines:
        return lines[-1]
    return type(error).__name__ if isinstance(error, BaseException) else ""
