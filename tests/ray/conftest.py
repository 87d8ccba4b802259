"""One local Ray for the modules whose runs can share it, and one group of workers for their runs.

Starting Ray costs ten seconds and a group twenty, most of it imports. Modules that are about the
start or the end of either have their own: they do not ask for `shared_ray`.
"""

import os
from collections.abc import Iterator
from contextlib import ExitStack

import pytest
import ray

from kdscale.run import pipeline
from kdscale.workers.group import WorkerGroups
from kdscale.workers.ray_session import ray_session
from tests.environment import environment
from tests.runs import CLEAN
from tests.s3 import S3Server

# Also for tests that start Ray themselves: Ray Data's thread for it writes tracebacks, for which
# Python 3.11 parses code, and parsing in two threads fails in the tests that parse kdscale's.
os.environ.setdefault("RAY_DATA_USAGE_DISABLED", "1")


class SharedGroups(WorkerGroups):
    """Worker groups that a run leaves to the next one, as a stage leaves them to the next stage."""

    def __exit__(self, *error: object) -> None:
        """Keep the idle group."""

    def close(self) -> None:
        """End the workers. What runs next starts others."""
        super().__exit__()
        self.__init__()  # type: ignore[misc]


GROUPS = SharedGroups()
SHARED = pytest.MonkeyPatch()


@pytest.fixture(scope="session")
def shared_ray(s3_server: S3Server) -> Iterator[None]:
    """Start Ray in this process, where `run_kdscale` finds it; its workers can reach the S3 server.

    Modules ask for it by `usefixtures("shared_ray")`, and tests/conftest.py puts them first.
    """
    # Ray's workers would yield to the other test process, which needs as long as they do. Those of
    # one run's data tasks are there for the next run.
    ray_settings = {
        "RAY_worker_niceness": "0",
        "RAY_idle_worker_killing_time_threshold_ms": "600000",
    }
    with ExitStack() as stack:
        with environment(**CLEAN | s3_server.env | ray_settings):
            stack.enter_context(ray_session())
        SHARED.setattr(pipeline, "WorkerGroups", lambda: GROUPS)
        yield
        end_sharing()


def end_sharing() -> None:
    """Shut the shared Ray and its workers down, if they are there still."""
    GROUPS.close()
    SHARED.undo()
    ray.shutdown()


@pytest.fixture(scope="module", autouse=True)
def ray_apart(request: pytest.FixtureRequest) -> None:
    """Shut the shared Ray down before a module that connects to another one."""
    used = [name for mark in request.node.iter_markers("usefixtures") for name in mark.args]
    if "shared_ray" not in used:
        end_sharing()
