"""Groups of workers: the only room that knows ray.train.

`worker` is what a rank is and can do, `group` runs a loop on a group of them, `start` is what each
process does before and after the loop, `events` what happens when Ray Train ends a group or wants
another size.
"""

from kdscale.workers.group import WorkerGroups, run_workers
from kdscale.workers.worker import LeavingError, Worker, current_worker, lone_worker

__all__ = ["LeavingError", "Worker", "WorkerGroups", "current_worker", "lone_worker", "run_workers"]
