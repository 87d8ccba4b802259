"""A job's final status becomes the command's exit code."""

import pytest

from kdscale.submit import Job, describe, exit_code
from kdscale.submit.job import Status


@pytest.mark.parametrize(
    ("status", "code", "expected"),
    [
        ("SUCCEEDED", 0, 0),
        ("PENDING", None, 0),
        ("RUNNING", None, 0),
        ("STOPPED", None, 5),
        ("FAILED", 1, 1),
        ("FAILED", 2, 2),
        ("FAILED", 125, 125),
        ("FAILED", 126, 1),
        ("FAILED", 137, 1),
        ("FAILED", -9, 1),
        ("FAILED", 0, 1),
        ("FAILED", None, 1),
    ],
)
def test_exit_code(status: Status, code: int | None, expected: int) -> None:
    assert exit_code(Job("job-1", status, exit_code=code)) == expected


def test_describe_gives_reason_and_seconds() -> None:
    job = Job(
        "job-1",
        "FAILED",
        started=1.0,
        ended=13.4,
        reason="JOB_ENTRYPOINT_COMMAND_ERROR",
        message="failed with exit code 2\nerror: no corpus\n",
    )
    assert describe(job) == (
        "job-1: FAILED after 12 s\nreason: JOB_ENTRYPOINT_COMMAND_ERROR\n"
        "failed with exit code 2\nerror: no corpus"
    )


def test_describe_of_a_running_job_is_one_line() -> None:
    assert describe(Job("job-1", "RUNNING", started=1.0, message="going")) == "job-1: RUNNING"


def test_facts_are_what_a_script_reads() -> None:
    job = Job("job-1", "FAILED", 1.0, 2.0, 3, "why", "", {"job_name": "n", "output": "/o"})
    assert job.facts() == {
        "id": "job-1",
        "status": "FAILED",
        "name": "n",
        "output": "/o",
        "started": 1.0,
        "ended": 2.0,
        "exit_code": 3,
        "reason": "why",
        "message": None,
    }
