"""Jobs from a laptop: package a run, submit it, follow it to its verdict. No torch in here.

plan.py          what a submission will ask of a back end
environment.py   its variables and the names of its secrets
package.py       the files that travel with it
backend.py       what a back end does; ray_jobs.py and local_jobs.py are such
once.py          a repeated submission is harmless
graph.py         several jobs that need each other; graph_run.py runs them
follow.py        the log and the status of a job, until it has ended
verdict.py       from a final status to an exit code
"""

from kdscale.submit.backend import Backend, open_backend
from kdscale.submit.cluster import connect
from kdscale.submit.environment import read_environment
from kdscale.submit.exit_codes import describe, exit_code
from kdscale.submit.follow import follow
from kdscale.submit.graph import plan_graph
from kdscale.submit.idempotent import check_same, find_job, submit_once
from kdscale.submit.job import Job
from kdscale.submit.job_plan import GRACE_SECONDS, JobPlan, plan_job
from kdscale.submit.log_times import offset_since
from kdscale.submit.package import EXCLUDES, checkout, stage

__all__ = [
    "EXCLUDES",
    "GRACE_SECONDS",
    "Backend",
    "Job",
    "JobPlan",
    "check_same",
    "checkout",
    "connect",
    "describe",
    "exit_code",
    "find_job",
    "follow",
    "offset_since",
    "open_backend",
    "plan_graph",
    "plan_job",
    "read_environment",
    "stage",
    "submit_once",
]
