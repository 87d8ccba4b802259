"""Fixtures that the tests of several packages use."""

import gc
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.environment import environment
from tests.runs import FinishedRun, run_kdscale, tiny_config, write_config, write_corpus
from tests.s3 import S3Server

RAY = "tests/ray/"
# They wait for stores, timeouts and other processes more than they compute.
WAITING = ("tests/fault/", "tests/unit/store/", "tests/unit/submit/", "tests/unit/tracking/")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the tests that use Ray first, as they take longest, and those that share one foremost.

    What mostly waits comes next, as it runs beside them in another process.
    """
    items.sort(
        key=lambda item: (
            not item.nodeid.startswith(RAY),
            "shared_ray" not in getattr(item, "fixturenames", ()),
            not item.nodeid.startswith(WAITING),
        )
    )


def pytest_collection_finish(session: pytest.Session) -> None:
    """Let garbage collections skip what is there: libraries and tests, whose objects all stay."""
    gc.collect()
    gc.freeze()


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Run all Ray tests in one process, and each file of the others in one.

    So fixtures of modules are made once, and no two tests start a cluster at the same time.
    """
    from xdist.scheduler import LoadFileScheduling

    class Scheduler(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return RAY if nodeid.startswith(RAY) else super()._split_scope(nodeid)

    config.option.loadscopereorder = False
    return Scheduler(config, log)


@pytest.fixture(autouse=True)
def environment_left_alone(tmp_path: Path) -> Iterator[None]:
    """Restore the environment after each test, which has its own records of submitted jobs."""
    with environment(XDG_STATE_HOME=str(tmp_path / "state")):
        yield


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """Start one S3 server for all tests. A test that stops it starts it again."""
    with S3Server(tmp_path_factory.mktemp("s3")) as server:
        yield server


@pytest.fixture
def s3_env(s3_server: S3Server) -> S3Server:
    """Put the S3 server's AWS_* variables, and no others, into the environment."""
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        del os.environ[name]
    os.environ.update(s3_server.env)
    return s3_server


@pytest.fixture(scope="session")
def finished_run(tmp_path_factory: pytest.TempPathFactory) -> FinishedRun:
    """Make one undisturbed run on a local disk, which others are compared with."""
    folder = tmp_path_factory.mktemp("run")
    corpus = write_corpus(folder / "corpus")
    output = folder / "output"
    config = write_config(folder / "tiny.yaml", tiny_config(corpus, str(output)))
    code, log = run_kdscale("run", str(config))
    assert code == 0, log[-6000:]
    return FinishedRun(output, config, corpus, log)
