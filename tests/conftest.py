"""Fixtures that more than one room's tests use."""

import os
from collections.abc import Iterator
from typing import Any

import pytest
from xdist.scheduler import LoadScopeScheduling

from tests.runs import FinishedRun, run_kdscale, tiny_config, write_config, write_corpus
from tests.s3 import S3Server

# Ray's workers give way to all others by default; beside other tests they would take twice as long.
os.environ.setdefault("RAY_worker_niceness", "0")


class ByModule(LoadScopeScheduling):
    """One process for the tests of `tests/ray`, which start whole clusters, and the others for
    single modules, whose fixtures are made once."""

    def _split_scope(self, nodeid: str) -> str:
        return "ray" if nodeid.startswith("tests/ray/") else nodeid.split("::")[0]


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> ByModule:
    """How pytest-xdist shares tests out."""
    return ByModule(config, log)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What takes longest begins first."""
    items.sort(key=lambda item: not item.nodeid.startswith("tests/ray/"))


@pytest.fixture(autouse=True)
def environment_left_alone() -> Iterator[None]:
    """What a test, or the code it runs, sets in the environment ends with the test."""
    before = dict(os.environ)
    yield
    os.environ.clear()
    os.environ.update(before)


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """One S3 server for all tests. A test that stops it starts it again."""
    with S3Server(tmp_path_factory.mktemp("s3")) as server:
        yield server


@pytest.fixture
def s3_env(s3_server: S3Server) -> Iterator[S3Server]:
    """The S3 server, with its AWS_* variables in this process's environment and no others."""
    before = {name: value for name, value in os.environ.items() if name.startswith("AWS_")}
    for name in before:
        del os.environ[name]
    os.environ.update(s3_server.env)
    yield s3_server
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        del os.environ[name]
    os.environ.update(before)


@pytest.fixture(scope="session")
def finished_run(tmp_path_factory: pytest.TempPathFactory) -> FinishedRun:
    """One undisturbed run on a local disk, which others are compared with."""
    folder = tmp_path_factory.mktemp("run")
    corpus = write_corpus(folder / "corpus")
    output = folder / "output"
    config = write_config(folder / "tiny.yaml", tiny_config(corpus, str(output)))
    code, log = run_kdscale("run", str(config))
    assert code == 0, log[-6000:]
    return FinishedRun(output, config, corpus, log)
