"""From a job's final status to an exit code and a sentence.

The status decides, never the end of the log: a log stream also ends when a connection drops, and
`ray job submit` then exits 0 for a job that failed later. The codes are the command's contract:

    0  SUCCEEDED, or still going      4  no such job
    1  FAILED (or the driver's code)  5  STOPPED
    2  usage, or a bad config       130  Ctrl-C: detached, the job goes on
    3  cluster unreachable
"""

from typing import TYPE_CHECKING

from kdscale.errors import KdscaleError

if TYPE_CHECKING:
    from ray.job_submission import JobDetails

UNREACHABLE = 3
NOT_FOUND = 4
STOPPED = 5
DETACHED = 130


class UnreachableError(KdscaleError):
    """No Ray answers at the address, or it does not let us in."""

    exit_code = UNREACHABLE


class UnknownJobError(KdscaleError):
    """The cluster does not know the job."""

    exit_code = NOT_FOUND


def exit_code(details: "JobDetails") -> int:
    """The exit code that stands for the job's status."""
    status = str(details.status.value)
    if status == "STOPPED":
        return STOPPED
    if status != "FAILED":
        return 0
    code = details.driver_exit_code
    # A driver ended by a signal has a negative code; codes above 125 have a meaning of the shell's.
    return code if code is not None and 1 <= code <= 125 else 1


def describe(details: "JobDetails") -> str:
    """A sentence on the job's status and, for one that failed, the reason that Ray gives."""
    status = str(details.status.value)
    seconds = _seconds(details)
    lines = [
        f"{details.submission_id}: {status}" + ("" if seconds is None else f" after {seconds} s")
    ]
    if status == "FAILED":
        lines.append(f"reason: {details.error_type or 'unknown'}")
        if details.message:
            lines.append(details.message.rstrip())
    return "\n".join(lines)


def _seconds(details: "JobDetails") -> int | None:
    """Seconds from start to end; None for a job that has not ended."""
    if details.start_time is None or not details.end_time:
        return None
    return round((details.end_time - details.start_time) / 1000)
