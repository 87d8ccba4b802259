"""Jobs on a cluster: package a run, submit it, follow it to its end. No torch in here.

job_plan.py      what a submission asks for, worked out before anything is contacted
environment.py   the job's variables; secrets.py: how secrets travel
package.py       the files that travel with the job
backend.py       the interface of a back end; ray_jobs.py and kube_jobs.py implement it
graph.py         several jobs that depend on each other
records.py       where the jobs submitted from this machine went
follow.py        the log and the status of a job, until it has ended
job.py           a job's status and its exit code
"""

from kdscale.submit.backend import Backend, check_same, open_backend, submit_once
from kdscale.submit.cluster import connect
from kdscale.submit.environment import read_environment
from kdscale.submit.follow import follow
from kdscale.submit.graph import plan_graph, submit_graph
from kdscale.submit.job import Job, describe, exit_code
from kdscale.submit.job_plan import GRACE_SECONDS, JobPlan, plan_job
from kdscale.submit.log_times import offset_since
from kdscale.submit.package import EXCLUDES, code_root, stage
from kdscale.submit.records import Place, Record, recall, recall_run, remember

__all__ = [
    "EXCLUDES",
    "GRACE_SECONDS",
    "Backend",
    "Job",
    "JobPlan",
    "Place",
    "Record",
    "check_same",
    "code_root",
    "connect",
    "describe",
    "exit_code",
    "follow",
    "offset_since",
    "open_backend",
    "plan_graph",
    "plan_job",
    "read_environment",
    "recall",
    "recall_run",
    "remember",
    "stage",
    "submit_graph",
    "submit_once",
]
