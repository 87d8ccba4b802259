"""From a job's final status to an exit code and a sentence.

The status decides, never the end of the log: a log stream also ends when a connection drops, and
`ray job submit` then exits 0 for a job that failed later. The codes are `kdscale.errors.ExitCode`.
"""

from kdscale.errors import ExitCode, KdscaleError
from kdscale.submit.job import Job


class UnreachableError(KdscaleError):
    """No Ray answers at the address, or it does not let us in."""

    exit_code = ExitCode.UNREACHABLE


class UnknownJobError(KdscaleError):
    """The back end does not know the job."""

    exit_code = ExitCode.NOT_FOUND


class WaitTimeoutError(KdscaleError):
    """The job was still going when the time to wait for it was over."""

    exit_code = ExitCode.TIMED_OUT


class DuplicateJobError(KdscaleError):
    """The back end has a job of that id already."""


def exit_code(job: Job) -> int:
    """The exit code that stands for the job's status."""
    if job.status == "STOPPED":
        return ExitCode.STOPPED
    if job.status != "FAILED":
        return 0
    code = job.exit_code
    # A driver ended by a signal has a negative code; codes above 125 have a meaning of the shell's.
    return code if code is not None and 1 <= code <= 125 else 1


def describe(job: Job) -> str:
    """A sentence on the job's status and, for one that failed, the reason."""
    after = "" if job.seconds is None else f" after {job.seconds:.0f} s"
    lines = [f"{job.id}: {job.status}{after}"]
    if job.status == "FAILED":
        lines.append(f"reason: {job.reason or 'unknown'}")
        if job.message:
            lines.append(job.message.rstrip())
    return "\n".join(lines)
