"""A job's final status becomes the command's exit code."""

import pytest
from ray.job_submission import JobDetails, JobStatus, JobType

from kdscale.submit import describe, exit_code


def details(status: JobStatus, **fields: object) -> JobDetails:
    return JobDetails(
        type=JobType.SUBMISSION, submission_id="job-1", status=status, entrypoint="x", **fields
    )


@pytest.mark.parametrize(
    ("status", "code", "expected"),
    [
        (JobStatus.SUCCEEDED, 0, 0),
        (JobStatus.PENDING, None, 0),
        (JobStatus.RUNNING, None, 0),
        (JobStatus.STOPPED, None, 5),
        (JobStatus.FAILED, 1, 1),
        (JobStatus.FAILED, 2, 2),
        (JobStatus.FAILED, 125, 125),
        (JobStatus.FAILED, 126, 1),
        (JobStatus.FAILED, 137, 1),
        (JobStatus.FAILED, -9, 1),
        (JobStatus.FAILED, 0, 1),
        (JobStatus.FAILED, None, 1),
    ],
)
def test_exit_code(status: JobStatus, code: int | None, expected: int) -> None:
    assert exit_code(details(status, driver_exit_code=code)) == expected


def test_describe_gives_reason_and_seconds() -> None:
    job = details(
        JobStatus.FAILED,
        start_time=1_000,
        end_time=13_400,
        error_type="JOB_ENTRYPOINT_COMMAND_ERROR",
        message="failed with exit code 2\nerror: no corpus\n",
    )
    assert describe(job) == (
        "job-1: FAILED after 12 s\nreason: JOB_ENTRYPOINT_COMMAND_ERROR\n"
        "failed with exit code 2\nerror: no corpus"
    )


def test_describe_of_a_running_job_is_one_line() -> None:
    running = details(JobStatus.RUNNING, start_time=1_000, end_time=0, message="going")
    assert describe(running) == "job-1: RUNNING"
