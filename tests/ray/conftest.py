"""One local Ray for the modules whose runs can share it: starting one costs ten seconds."""

import os
from collections.abc import Iterator

import pytest
import ray

from kdscale.workers.ray_session import ray_session
from tests.runs import CLEAN
from tests.s3 import S3Server


@pytest.fixture(scope="session")
def shared_ray(s3_server: S3Server) -> Iterator[None]:
    """Start Ray in this process, where `run_kdscale` finds it; its workers can reach the S3 server.

    Modules ask for it by `usefixtures("shared_ray")`, and tests/conftest.py puts them first.
    """
    before = dict(os.environ)
    # Ray's workers would yield to the other test process, which needs as long as they do.
    os.environ.update(CLEAN | s3_server.env | {"RAY_worker_niceness": "0"})
    with ray_session():
        os.environ.clear()
        os.environ.update(before)
        yield


@pytest.fixture(scope="module", autouse=True)
def ray_apart(request: pytest.FixtureRequest) -> None:
    """Shut the shared Ray down before a module that connects to another one."""
    used = [name for mark in request.node.iter_markers("usefixtures") for name in mark.args]
    if "shared_ray" not in used:
        ray.shutdown()
