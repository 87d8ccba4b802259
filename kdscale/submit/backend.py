"""Back ends, where jobs run: Ray's job server, or Kubernetes with KubeRay."""

from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any, Protocol

from kdscale.errors import KdscaleError
from kdscale.submit.job import DuplicateJobError, Job, UnknownJobError
from kdscale.submit.job_plan import JobPlan
from kdscale.submit.records import Place


class Backend(Protocol):
    """A place where jobs run. Creating one contacts nothing; calls may raise UnreachableError.

    Calls that take a job's id raise UnknownJobError where there is no such job.
    """

    @property
    def place(self) -> Place:
        """Place at which later commands reach this back end, from any folder. May connect."""

    def render(self, plan: JobPlan) -> dict[str, Any]:
        """Return what a submission would send, as plain data. Contacts nothing."""

    def submit(self, plan: JobPlan, folder: Path) -> None:
        """Start the job on the files staged in `folder`, which may be removed afterwards.

        Raises DuplicateJobError for an id in use.
        """

    def details(self, job_id: str) -> Job:
        """Return the job as it is now."""

    def log(self, job_id: str) -> str:
        """Return all that the job has written so far."""

    def tail(self, job_id: str) -> AsyncIterator[str]:
        """Yield the log from its beginning, as it grows. May end or break at any time."""

    def list(self) -> list[Job]:
        """Return all jobs that the back end remembers, oldest first."""

    def stop(self, job_id: str, grace_seconds: int | None = None) -> bool:
        """Ask the job to stop, to be killed after `grace_seconds` (default: as submitted).

        Returns whether it was going. Does not wait.
        """

    def clean(self, job: Job) -> None:
        """Delete what an ended job may have left, such as its sealed secrets."""


def open_backend(
    place: Place,
    *,
    upload_to: str | None = None,
    allow_skew: bool = False,
    say: Callable[[str], None] = lambda _: None,
) -> Backend:
    """Return the back end at `place`; the other arguments are for ray.

    Raises KdscaleError for an unknown one.
    """
    name = place.backend
    if name == "ray":
        from kdscale.submit.ray_jobs import RayJobs

        return RayJobs(place.address, upload_to=upload_to, allow_skew=allow_skew, say=say)
    if name == "kuberay":
        from kdscale.submit.kube_jobs import KubeJobs

        return KubeJobs(place.kube)
    if name == "local":
        raise KdscaleError(
            "There is no back end 'local' any more: Ray's job server runs on one machine too.",
            "`ray start --head` once, then `kdscale submit CONFIG` without --backend.",
        )
    raise KdscaleError(f"There is no back end {name!r}.", "Choose one of ray, kuberay.")


def submit_once(backend: Backend, plan: JobPlan, folder: Path) -> Job | None:
    """Submit the plan, or return the job that an earlier submission of the same plan started.

    None where this call started it. Raises KdscaleError where the id belongs to another config.
    """
    try:
        found = backend.details(plan.submission_id)
    except UnknownJobError:
        try:
            backend.submit(plan, folder)
        except DuplicateJobError:
            # Another submission came first.
            found = backend.details(plan.submission_id)
        else:
            return None
    check_same(found, plan)
    return found


def check_same(found: Job, plan: JobPlan) -> None:
    """Raise KdscaleError where the job is not one of this plan."""
    if found.metadata.get("digest") != plan.metadata["digest"]:
        raise KdscaleError(
            f"The id {plan.submission_id!r} belongs to a job with another config, other stages or "
            "other variables.",
            f"Look at it with `kdscale status {plan.submission_id}`, or choose another id.",
        )
