"""Following a job whose connection misbehaves, against a client that plays a script of it."""

import asyncio
import itertools
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from kdscale.errors import KdscaleError
from kdscale.submit import Job, follow
from kdscale.submit.job import Status, UnknownJobError, UnreachableError, WaitTimeoutError

LOG = "Running entrypoint\nline 1\nline 2\nline 3\n"


class Jobs:
    """A back end. `statuses` and `streams` are played one a call; the last one stays.

    A status is one or an exception. A stream is a list of chunks, or None, which hangs like a
    connection gone dead.
    """

    def __init__(self, statuses: list[Any], streams: list[list[Any]], log: Any = LOG) -> None:
        self.statuses = itertools.chain(statuses, itertools.repeat(statuses[-1]))
        self.streams = itertools.chain(streams, itertools.repeat(streams[-1]))
        self.written = log
        self.opened = 0

    def details(self, job_id: str) -> Job:
        return Job(job_id, played(next(self.statuses)))

    def log(self, job_id: str) -> str:
        return str(played(self.written))

    async def tail(self, job_id: str) -> AsyncIterator[str]:
        self.opened += 1
        for item in next(self.streams):
            if item is None:
                await asyncio.Event().wait()
            yield played(item)


def played(item: Any) -> Any:
    if isinstance(item, Exception):
        raise item
    return item


def run(client: Jobs, **options: Any) -> tuple[str, Status]:
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


def until(opened: int, client: Callable[[], Jobs], then: Status) -> Any:
    """A status that is RUNNING until the log was opened so many times."""
    while client().opened < opened:
        yield "RUNNING"
    while True:
        yield then


def script(opened: int, then: Status, streams: list[list[Any]], log: Any = LOG) -> Jobs:
    client = Jobs([then], streams, log)
    client.statuses = until(opened, lambda: client, then)
    return client


def test_a_steady_stream_is_written_once() -> None:
    text, status = run(script(1, "SUCCEEDED", [chunks(LOG, 5)]))
    assert text == LOG
    assert status == "SUCCEEDED"


@pytest.mark.parametrize("cut", [0, 1, 18, 19, 22, len(LOG) - 1])
def test_a_dropped_stream_is_opened_again_without_repeating(cut: int) -> None:
    client = script(3, "FAILED", [chunks(LOG[:cut], 7), [LOG[: cut // 2]], chunks(LOG, 4)])
    text, status = run(client)
    assert text == LOG
    assert status == "FAILED"
    assert client.opened >= 3


def test_a_silent_stream_does_not_outlive_the_job() -> None:
    text, status = run(script(1, "STOPPED", [[LOG[:9], None]]))
    assert text == LOG
    assert status == "STOPPED"


def test_the_status_decides_where_the_log_is_lost() -> None:
    text, status = run(script(1, "FAILED", [[LOG[:9]]], KdscaleError("gone", "look")))
    assert text.startswith(LOG[:9])
    assert "the end of the log cannot be had" in text
    assert status == "FAILED"


def test_a_network_that_comes_back_is_waited_for() -> None:
    away = [UnreachableError("away", "wait")] * 3
    client = Jobs(["RUNNING", *away, "SUCCEEDED"], [chunks(LOG, 3)])
    assert run(client) == (LOG, "SUCCEEDED")


def test_a_network_that_stays_away_is_an_error() -> None:
    client = Jobs(["RUNNING", UnreachableError("away", "wait")], [[LOG[:9], None]])
    with pytest.raises(UnreachableError) as caught:
        run(client, patience_seconds=0.0)
    assert caught.value.exit_code == 3


def test_unknown_job() -> None:
    with pytest.raises(UnknownJobError) as caught:
        run(Jobs([UnknownJobError("no job", "look")], [[]]))
    assert caught.value.exit_code == 4


@pytest.mark.parametrize("skip", [0, 5, len(LOG)])
def test_what_was_skipped_is_not_written(skip: int) -> None:
    text, _ = run(script(1, "SUCCEEDED", [chunks(LOG, 5)]), skip=skip)
    assert text == LOG[skip:]


def test_the_time_to_wait_ends() -> None:
    client = Jobs(["RUNNING"], [[LOG[:9], None]])
    with pytest.raises(WaitTimeoutError, match="has not ended after") as caught:
        run(client, timeout_seconds=0.05)
    assert caught.value.exit_code == 6


def test_a_job_that_has_ended_is_known_without_waiting() -> None:
    assert run(Jobs(["SUCCEEDED"], [[]]), timeout_seconds=0.0) == (LOG, "SUCCEEDED")


def test_waiting_opens_no_log() -> None:
    client = Jobs(["RUNNING", "RUNNING", "STOPPED"], [[LOG]])
    assert follow(client, "job-1", None, poll_seconds=0.001).status == "STOPPED"
    assert client.opened == 0
