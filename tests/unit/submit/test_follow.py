"""Following a job whose connection misbehaves, against a client that plays a script of it."""

import asyncio
import itertools
from collections.abc import AsyncIterator, Callable
from types import SimpleNamespace
from typing import Any

import pytest
from ray.job_submission import JobStatus

from kdscale.submit import follow
from kdscale.submit.verdict import UnknownJobError, UnreachableError

LOG = "Running entrypoint\nline 1\nline 2\nline 3\n"


class Client:
    """`statuses` and `streams` are played one a call; the last one stays.

    A status is a JobStatus or an exception. A stream is a list of chunks, exceptions, or None,
    which hangs like a connection gone dead.
    """

    def __init__(self, statuses: list[Any], streams: list[list[Any]], log: Any = LOG) -> None:
        self.statuses = itertools.chain(statuses, itertools.repeat(statuses[-1]))
        self.streams = itertools.chain(streams, itertools.repeat(streams[-1]))
        self.log = log
        self.opened = 0

    def get_address(self) -> str:
        return "http://head:8265"

    def get_job_info(self, job_id: str) -> Any:
        return SimpleNamespace(submission_id=job_id, status=played(next(self.statuses)))

    def get_job_logs(self, job_id: str) -> str:
        return str(played(self.log))

    async def tail_job_logs(self, job_id: str) -> AsyncIterator[str]:
        self.opened += 1
        for item in next(self.streams):
            if item is None:
                await asyncio.Event().wait()
            yield played(item)


def played(item: Any) -> Any:
    if isinstance(item, Exception):
        raise item
    return item


def run(client: Client, **options: Any) -> tuple[str, JobStatus]:
    written: list[str] = []
    details = follow(
        client,
        "job-1",
        written.append,
        **{"poll_seconds": 0.001, **options},
    )
    return "".join(written), details.status


def chunks(text: str, size: int) -> list[Any]:
    return [text[i : i + size] for i in range(0, len(text), size)]


RUNNING, SUCCEEDED, FAILED = JobStatus.RUNNING, JobStatus.SUCCEEDED, JobStatus.FAILED


def until(opened: int, client: Callable[[], Client], then: JobStatus) -> Any:
    """A status that is RUNNING until the log was opened so many times."""
    while client().opened < opened:
        yield RUNNING
    while True:
        yield then


def script(opened: int, then: JobStatus, streams: list[list[Any]], log: Any = LOG) -> Client:
    client = Client([then], streams, log)
    client.statuses = until(opened, lambda: client, then)
    return client


def test_a_steady_stream_is_written_once() -> None:
    text, status = run(script(1, SUCCEEDED, [chunks(LOG, 5)]))
    assert text == LOG
    assert status is SUCCEEDED


@pytest.mark.parametrize("cut", [0, 1, 18, 19, 22, len(LOG) - 1])
@pytest.mark.parametrize("end", [[], [RuntimeError("1006")], [OSError("reset")]])
def test_a_dropped_stream_is_opened_again_without_repeating(cut: int, end: list[Any]) -> None:
    client = script(3, FAILED, [[*chunks(LOG[:cut], 7), *end], [LOG[: cut // 2]], chunks(LOG, 4)])
    text, status = run(client)
    assert text == LOG
    assert status is FAILED
    assert client.opened >= 3


def test_a_silent_stream_does_not_outlive_the_job() -> None:
    text, status = run(script(1, JobStatus.STOPPED, [[LOG[:9], None]]))
    assert text == LOG
    assert status is JobStatus.STOPPED


def test_the_status_decides_where_the_log_is_lost() -> None:
    text, status = run(script(1, FAILED, [[LOG[:9]]], RuntimeError("status code 500: gone")))
    assert text.startswith(LOG[:9])
    assert "the end of the log cannot be had" in text
    assert status is FAILED


def test_a_network_that_comes_back_is_waited_for() -> None:
    away = [ConnectionError("away")] * 3
    client = Client([RUNNING, *away, SUCCEEDED], [chunks(LOG, 3)])
    assert run(client) == (LOG, SUCCEEDED)


def test_a_network_that_stays_away_is_an_error() -> None:
    client = Client([RUNNING, ConnectionError("away")], [[LOG[:9], None]])
    with pytest.raises(UnreachableError) as caught:
        run(client, patience_seconds=0.0)
    assert caught.value.exit_code == 3


def test_unknown_job() -> None:
    missing = RuntimeError("Request failed with status code 404: Job job-1 does not exist.")
    with pytest.raises(UnknownJobError) as caught:
        run(Client([missing], [[]]))
    assert caught.value.exit_code == 4
    assert "'job-1'" in caught.value.problem
