"""The retry policy, on a clock that the test turns."""

import random
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest
from aiohttp import ClientPayloadError
from aiohttp.http_exceptions import ContentLengthError
from botocore.exceptions import (
    ClientError,
    EndpointConnectionError,
    NoCredentialsError,
    ReadTimeoutError,
)
from s3fs.errors import translate_boto_error

from kdscale.store.retry import Retry, full_jitter, is_transient


@dataclass
class Clock:
    """Time that passes only where somebody sleeps."""

    now: float = 0.0
    pauses: list[float] = field(default_factory=list)

    def sleep(self, seconds: float) -> None:
        self.pauses.append(seconds)
        self.now += seconds

    def policy(self, **options: float) -> Retry:
        """Return a policy on this clock whose pauses are always the ceiling."""
        return Retry(
            **options, sleep=self.sleep, clock=lambda: self.now, jitter=lambda ceiling: ceiling
        )


def failing(times: int, error: Exception) -> Callable[[], str]:
    """Return an operation that fails so often, and then returns "done"."""
    left = [error] * times

    def operation() -> str:
        if left:
            raise left.pop()
        return "done"

    return operation


def test_pauses_double_up_to_the_longest() -> None:
    clock = Clock()
    policy = clock.policy(first_pause=1, longest_pause=5, deadline=100)
    assert policy(failing(5, ConnectionError("cut"))) == "done"
    assert clock.pauses == [1, 2, 4, 5, 5]


def test_a_success_pauses_for_nothing() -> None:
    clock = Clock()
    assert clock.policy()(lambda: 7) == 7
    assert clock.pauses == []


def test_the_deadline_counts_pauses_and_is_not_passed() -> None:
    clock = Clock()
    with pytest.raises(TimeoutError, match="slow"):
        clock.policy(first_pause=1, longest_pause=5, deadline=8)(failing(99, TimeoutError("slow")))
    assert clock.pauses == [1, 2, 4]


def test_what_is_final_is_raised_at_once() -> None:
    clock = Clock()
    for error in (FileNotFoundError("gone"), PermissionError("no"), ValueError("bad")):
        with pytest.raises(type(error)):
            clock.policy()(failing(1, error))
    assert clock.pauses == []


def test_jitter_fills_the_range_and_leaves_the_global_generator_alone() -> None:
    state = random.getstate()
    pauses = [full_jitter(2.0) for _ in range(1000)]
    assert random.getstate() == state
    assert min(pauses) < 0.1 < 1.9 < max(pauses) <= 2.0


def test_a_torn_answer_is_transient_whatever_aiohttp_calls_it() -> None:
    # The parser's error under it carries "400", which no server said.
    error = ClientPayloadError("Response payload is not completed")
    error.__cause__ = ContentLengthError("Not enough data")
    assert error.__cause__.code == 400
    assert is_transient(error)


def test_an_outage_is_logged_and_a_blip_is_not(caplog: pytest.LogCaptureFixture) -> None:
    clock = Clock()
    policy = clock.policy(first_pause=8, longest_pause=8, deadline=100)
    policy(failing(3, ConnectionError("cut")), "put s3://bucket/key")
    assert [(record.levelname, record.message) for record in caplog.records] == [
        ("WARNING", "put s3://bucket/key: ConnectionError: cut; trying again in 8.0 s")
    ]


def answer(status: int, code: str) -> ClientError:
    return ClientError(
        {"Error": {"Code": code}, "ResponseMetadata": {"HTTPStatusCode": status}}, "PutObject"
    )


@pytest.mark.parametrize(
    ("status", "code", "transient"),
    [
        (500, "InternalError", True),
        (503, "SlowDown", True),
        (503, "503", True),
        (429, "TooManyRequests", True),
        (409, "ConditionalRequestConflict", True),
        (400, "RequestTimeout", True),
        (400, "XAmzContentSHA256Mismatch", True),
        (400, "InvalidArgument", False),
        (403, "AccessDenied", False),
        (404, "NoSuchKey", False),
        (412, "PreconditionFailed", False),
        (416, "InvalidRange", False),
        (501, "NotImplemented", False),
    ],
)
def test_answers_of_s3_as_s3fs_raises_them(status: int, code: str, transient: bool) -> None:
    assert is_transient(translate_boto_error(answer(status, code))) is transient


@pytest.mark.parametrize(
    ("error", "transient"),
    [
        (ConnectionResetError(), True),
        (TimeoutError(), True),
        (OSError(113, "No route to host"), True),
        (EndpointConnectionError(endpoint_url="http://nowhere"), True),
        (ReadTimeoutError(endpoint_url="http://nowhere"), True),
        (NoCredentialsError(), False),
        (OSError(28, "No space left on device"), False),
        (FileExistsError(), False),
    ],
)
def test_failures_without_an_answer(error: Exception, transient: bool) -> None:
    assert is_transient(error) is transient
