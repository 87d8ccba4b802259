"""Jobs as every back end describes them: status, exit code, errors.

The status decides, never the end of the log: a log stream also ends when a connection drops, and
`ray job submit` then exits 0 for a job that failed later. The codes are `kdscale.errors.ExitCode`.
"""

from dataclasses import dataclass, field
from typing import Any, Literal

from kdscale.errors import ExitCode, KdscaleError

Status = Literal["PENDING", "RUNNING", "STOPPED", "SUCCEEDED", "FAILED"]
FINAL: tuple[Status, ...] = ("STOPPED", "SUCCEEDED", "FAILED")


@dataclass(frozen=True)
class Job:
    """A submitted job. Times are Unix seconds, None where the event has not happened.

    `exit_code` is the driver's, `reason` and `message` say why a job failed, `metadata` is what
    the submission recorded (job_plan.py).
    """

    id: str
    status: Status
    started: float | None = None
    ended: float | None = None
    exit_code: int | None = None
    reason: str = ""
    message: str = ""
    metadata: dict[str, str] = field(default_factory=dict)

    @property
    def is_over(self) -> bool:
        """True if the status is final."""
        return self.status in FINAL

    def facts(self) -> dict[str, Any]:
        """Return what `--json` prints of a job."""
        return {
            "id": self.id,
            "status": self.status,
            "name": self.metadata.get("job_name"),
            "output": self.metadata.get("output"),
            "started": self.started,
            "ended": self.ended,
            "exit_code": self.exit_code,
            "reason": self.reason or None,
            "message": self.message or None,
        }


class UnreachableError(KdscaleError):
    """No cluster answers at the address, or it refuses access."""

    exit_code = ExitCode.UNREACHABLE


class UnknownJobError(KdscaleError):
    """The back end does not know the job."""

    exit_code = ExitCode.NOT_FOUND


class WaitTimeoutError(KdscaleError):
    """The job was still going when the time to wait for it was over."""

    exit_code = ExitCode.TIMED_OUT


class DuplicateJobError(KdscaleError):
    """The back end already has a job of that id."""


def exit_code(job: Job) -> int:
    """Return the exit code for the job's status."""
    if job.status == "STOPPED":
        return ExitCode.STOPPED
    if job.status != "FAILED":
        return ExitCode.OK
    code = job.exit_code
    # A driver ended by a signal has a negative code; codes above 125 have a meaning of the shell's.
    return code if code is not None and 1 <= code <= 125 else ExitCode.FAILED


def describe(job: Job) -> str:
    """Return a sentence on the job's status and, for one that failed, the reason."""
    ended = job.started is not None and job.ended is not None
    after = f" after {job.ended - job.started:.0f} s" if ended else ""  # type: ignore[operator]
    lines = [f"{job.id}: {job.status}{after}"]
    if job.status == "FAILED":
        lines.append(f"reason: {job.reason or 'unknown'}")
        if job.message:
            lines.append(job.message.rstrip())
    return "\n".join(lines)
