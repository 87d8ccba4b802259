"""Submit, look up, list and stop jobs: Ray's job API with errors that a person can act on."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from kdscale.errors import KdscaleError
from kdscale.submit.plan import JobPlan
from kdscale.submit.verdict import UnknownJobError, UnreachableError

if TYPE_CHECKING:
    from ray.job_submission import JobDetails, JobSubmissionClient


def submit_job(client: "JobSubmissionClient", plan: JobPlan, working_dir: Path) -> str:
    """Upload the staged `working_dir`, start the job, and return its id.

    Raises KdscaleError for an id in use or a package that is too large, UnreachableError.
    """
    with _translated(client):
        try:
            return client.submit_job(
                entrypoint=plan.entrypoint,
                submission_id=plan.submission_id,
                runtime_env={"working_dir": str(working_dir), "env_vars": plan.environment},
                metadata=plan.metadata,
            )
        except RuntimeError as error:
            if "already exists" not in str(error):
                raise
            raise KdscaleError(
                f"The cluster has a job {plan.submission_id!r} already.",
                f"Look at it with `kdscale status {plan.submission_id}`, or choose another id.",
            ) from error


def job_details(client: "JobSubmissionClient", job_id: str) -> "JobDetails":
    """The job's status, times, exit code and reason. Raises UnknownJobError, UnreachableError."""
    with _translated(client, job_id):
        return client.get_job_info(job_id)


def job_log(client: "JobSubmissionClient", job_id: str) -> str:
    """All that the job has written so far. Raises UnknownJobError, UnreachableError."""
    with _translated(client, job_id):
        return client.get_job_logs(job_id)


def list_jobs(client: "JobSubmissionClient") -> list["JobDetails"]:
    """The submitted jobs that the cluster remembers, oldest first. Raises UnreachableError."""
    with _translated(client):
        jobs = [job for job in client.list_jobs() if job.submission_id]
    return sorted(jobs, key=lambda job: job.start_time or 0)


def stop_job(client: "JobSubmissionClient", job_id: str) -> bool:
    """Ask the job to end; True when it was going. Raises UnknownJobError, UnreachableError."""
    with _translated(client, job_id):
        return client.stop_job(job_id)


@contextmanager
def _translated(client: "JobSubmissionClient", job_id: str | None = None) -> Iterator[None]:
    """Turn what Ray's client raises into errors with a fix."""
    import requests

    address = client.get_address()
    try:
        yield
    except (ConnectionError, requests.RequestException) as error:
        raise UnreachableError(
            f"The cluster at {address} does not answer: {error}",
            "A job that has started goes on without us; try again when the network is back.",
        ) from error
    except RuntimeError as error:
        if job_id is not None and "status code 404" in str(error):
            raise UnknownJobError(
                f"The cluster at {address} has no job {job_id!r}.",
                "`kdscale list` shows the jobs it remembers; check --address too.",
            ) from error
        raise KdscaleError(
            f"The cluster at {address} refused the request: {_last_line(error)}",
            "See the head's dashboard.log, or `ray job logs` on the head, for the cause.",
        ) from error


def _last_line(error: Exception) -> str:
    """The sentence at the end of the server's traceback."""
    return str(error).strip().splitlines()[-1]
