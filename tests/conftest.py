"""Fixtures that more than one room's tests use."""

import os
from collections.abc import Iterator

import pytest

from tests.runs import FinishedRun, run_kdscale, tiny_config, write_config, write_corpus
from tests.s3 import S3Server


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
