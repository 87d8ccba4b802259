"""What a back end must do to run jobs, and how one is chosen."""

from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any, Literal, Protocol, get_args

from kdscale.errors import KdscaleError
from kdscale.submit.job import Job
from kdscale.submit.job_plan import JobPlan

BackendName = Literal["ray", "local", "kuberay"]


class Backend(Protocol):
    """A place where jobs run. Making one contacts nothing; every call may raise UnreachableError.

    Calls that take a job's id raise UnknownJobError where there is no such job.
    """

    @property
    def options(self) -> str:
        """The options of a command that reach this back end again, with a space before each."""

    def render(self, plan: JobPlan) -> dict[str, Any]:
        """What a submission would send, as plain data. Contacts nothing."""

    def submit(self, plan: JobPlan, folder: Path) -> None:
        """Start the job on the files staged in `folder`, which may be gone after.

        Raises DuplicateJobError for an id in use.
        """

    def details(self, job_id: str) -> Job:
        """The job as it is at this moment."""

    def log(self, job_id: str) -> str:
        """All that the job has written so far."""

    def tail(self, job_id: str) -> AsyncIterator[str]:
        """The log from its beginning, as it grows. May end, break or fall silent at any time."""

    def list(self) -> list[Job]:
        """All jobs that are remembered, oldest first."""

    def stop(self, job_id: str, grace_seconds: int | None = None) -> bool:
        """Ask the job to leave, to be killed after `grace_seconds` (default: as submitted).

        True when it was going. Does not wait.
        """

    def clean(self, job: Job) -> None:
        """Take away what a job that has ended may have left, such as its sealed secrets."""


def open_backend(
    name: str,
    address: str | None = None,
    kube: str | None = None,
    *,
    upload_to: str | None = None,
    allow_skew: bool = False,
    say: Callable[[str], None] = lambda _: None,
) -> Backend:
    """The back end `name`: `kube` is for kuberay, all else for ray.

    Raises KdscaleError for an unknown name.
    """
    if name == "ray":
        from kdscale.submit.ray_jobs import RayJobs

        return RayJobs(address, upload_to=upload_to, allow_skew=allow_skew, say=say)
    if name == "local":
        from kdscale.submit.local_jobs import LocalJobs

        return LocalJobs()
    if name == "kuberay":
        from kdscale.submit.kube_jobs import KubeJobs

        return KubeJobs(kube)
    raise KdscaleError(
        f"There is no back end {name!r}.", f"Choose one of {', '.join(get_args(BackendName))}."
    )
