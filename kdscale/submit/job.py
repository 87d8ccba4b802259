"""A job as every back end describes it."""

from dataclasses import dataclass, field
from typing import Any, Literal

Status = Literal["PENDING", "RUNNING", "STOPPED", "SUCCEEDED", "FAILED"]
FINAL: tuple[Status, ...] = ("STOPPED", "SUCCEEDED", "FAILED")


@dataclass(frozen=True)
class Job:
    """A submitted job. Times are Unix seconds, None where the thing has not happened.

    `exit_code` is the driver's, `reason` and `message` say why a job failed, `metadata` is what
    the submission said of itself (plan.py).
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
        """Whether the status is final."""
        return self.status in FINAL

    @property
    def seconds(self) -> float | None:
        """From start to end; None for a job that has not ended."""
        if self.started is None or self.ended is None:
            return None
        return self.ended - self.started

    def facts(self) -> dict[str, Any]:
        """What `--json` prints of a job."""
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
