"""Processes of a test end with it, and every store is a fresh one."""

import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from kdscale.cache.rows import CachedRows
from kdscale.store import Store, open_store
from tests.fault.captures import capture
from tests.fault.outcome import SHARDS, decoded, planted_in
from tests.fault.processes import Worker

Start = Callable[..., Worker]


@pytest.fixture
def start() -> Iterator[Start]:
    """`Worker`, killed at the end of the test."""
    workers: list[Worker] = []

    def begin(work: Callable[..., Any], *arguments: Any, **settings: str) -> Worker:
        workers.append(Worker(work, *arguments, **settings))
        return workers[-1]

    yield begin
    for worker in workers:
        worker.kill()


@pytest.fixture
def local(tmp_path: Path) -> Store:
    """Return a store in a folder that exists."""
    (tmp_path / "stores").mkdir()
    return open_store(str(tmp_path / "stores"))


@pytest.fixture(params=["local", pytest.param("s3", marks=pytest.mark.s3)])
def store(request: pytest.FixtureRequest) -> Store:
    """Return a store in a folder, and one on a real S3 server."""
    if request.param == "local":
        folder: Store = request.getfixturevalue("local")
        return folder
    server = request.getfixturevalue("s3_env")
    return open_store(f"{server.url}/{uuid.uuid4().hex}")


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> CachedRows:
    """Return the decoded cache of an undisturbed capture."""
    planted = planted_in(open_store(str(tmp_path_factory.mktemp("undisturbed"))))
    worker = Worker(capture, planted)
    assert worker.result() == SHARDS
    return decoded(planted.store)
