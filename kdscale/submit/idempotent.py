"""Submitting so that doing it twice is harmless."""

from pathlib import Path

from kdscale.errors import KdscaleError
from kdscale.submit.backend import Backend
from kdscale.submit.exit_codes import DuplicateJobError, UnknownJobError
from kdscale.submit.job import Job
from kdscale.submit.job_plan import JobPlan


def find_job(backend: Backend, job_id: str) -> Job | None:
    """The job of that id, None where there is none."""
    try:
        return backend.details(job_id)
    except UnknownJobError:
        return None


def submit_once(backend: Backend, plan: JobPlan, folder: Path) -> Job | None:
    """Submit the plan, or find the job that an earlier submission of the same plan started.

    None where this call started it. Raises KdscaleError where the id stands for another config.
    """
    found = find_job(backend, plan.submission_id)
    if found is None:
        try:
            backend.submit(plan, folder)
        except DuplicateJobError:
            # Somebody was faster.
            found = backend.details(plan.submission_id)
        else:
            return None
    check_same(found, plan)
    return found


def check_same(found: Job, plan: JobPlan) -> None:
    """Raises KdscaleError where the job is not one of this plan."""
    if found.metadata.get("digest") != plan.metadata["digest"]:
        raise KdscaleError(
            f"The id {plan.submission_id!r} belongs to a job with another config, other stages or "
            "other variables.",
            f"Look at it with `kdscale status {plan.submission_id}`, or choose another id.",
        )
