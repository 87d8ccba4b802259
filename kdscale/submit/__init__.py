"""Ray Jobs from a laptop: package a run, submit it, follow it to its verdict. No torch in here.

plan.py      what a submission will ask of the cluster
package.py   the files that travel with it
cluster.py   the client, its address and its token
jobs.py      submit, look up, list, stop
follow.py    the log and the status of a job, until it has ended
verdict.py   from a final status to an exit code
"""

from kdscale.submit.cluster import connect
from kdscale.submit.follow import follow
from kdscale.submit.jobs import job_details, job_log, list_jobs, stop_job, submit_job
from kdscale.submit.package import EXCLUDES, checkout, stage
from kdscale.submit.plan import JobPlan, plan_job
from kdscale.submit.verdict import describe, exit_code

__all__ = [
    "EXCLUDES",
    "JobPlan",
    "checkout",
    "connect",
    "describe",
    "exit_code",
    "follow",
    "job_details",
    "job_log",
    "list_jobs",
    "plan_job",
    "stage",
    "stop_job",
    "submit_job",
]
