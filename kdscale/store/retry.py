"""One retry policy for all remote calls: exponential pauses with full jitter, and a deadline.

Full jitter (a pause drawn from 0 to the ceiling) keeps hundreds of workers, thrown out by the same
outage, from coming back in step: Brooker, "Exponential Backoff And Jitter", AWS Architecture Blog,
2015.
The clients' own retries are turned off, so that attempts do not multiply.
"""

import errno
import logging
import random
import socket
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TypeVar

from tenacity import RetryCallState, Retrying, retry_if_exception, wait_exponential

from kdscale.store.redact import redact

T = TypeVar("T")
log = logging.getLogger(__name__)

# Not the global generator: a retry must not move the random numbers of a training.
_random = random.SystemRandom()

# 409 is what S3 answers to a conditional create that met another one in flight: try again.
_TRANSIENT_STATUS = {408, 409, 425, 429, 500, 502, 503, 504, 507, 509}
# Error codes that say "again" under a status that usually does not.
_TRANSIENT_CODES = {"RequestTimeout", "IncompleteBody", "BadDigest", "XAmzContentSHA256Mismatch"}
# Network failures of botocore, aiohttp, requests, azure and google.auth, none of which derives from
# ConnectionError. Known by name, so that this module imports no client that may not be installed.
_TRANSIENT_NAMES = {
    "HTTPClientError",
    "ConnectionError",
    "ClientConnectionError",
    "ClientPayloadError",
    "IncompleteRead",
    "ResponseParserError",
    "ServiceRequestError",
    "ServiceResponseError",
    "TransportError",
}
_TRANSIENT_ERRNO = {errno.EHOSTUNREACH, errno.ENETUNREACH, errno.ENETDOWN}

_UNKNOWN_HOST_ERRNO = {socket.EAI_NONAME, getattr(socket, "EAI_NODATA", socket.EAI_NONAME)}
_UNKNOWN_HOST = (
    "Name or service not known",
    "nodename nor servname provided",
    "No address associated with hostname",
    "Domain name not found",
    "no record found",
)

_OUTAGE = 10.0  # seconds


def full_jitter(ceiling: float) -> float:
    """Return a pause in seconds, uniform between 0 and `ceiling`."""
    return _random.uniform(0.0, ceiling)


@dataclass(frozen=True)
class Retry:
    """Policy that calls an operation until it succeeds, fails for good, or `deadline` s are over.

    knows_host: whether the host has ever answered. Of one that has not, a name that no name server
    knows is a mistake and no outage.
    """

    deadline: float = 120.0
    first_pause: float = 0.2
    longest_pause: float = 15.0
    sleep: Callable[[float], None] = time.sleep
    clock: Callable[[], float] = time.monotonic
    jitter: Callable[[float], float] = full_jitter
    knows_host: bool = True

    def __call__(self, operation: Callable[[], T], name: str = "") -> T:
        """Return the operation's result, or raise its last error, unchanged. `name` is logged."""
        start, elapsed = self.clock(), 0.0
        ceiling = wait_exponential(multiplier=self.first_pause, max=self.longest_pause)

        def is_too_late(state: RetryCallState) -> bool:
            nonlocal elapsed
            elapsed = self.clock() - start
            return elapsed + state.upcoming_sleep > self.deadline

        def log_pause(state: RetryCallState) -> None:
            assert state.outcome is not None
            error = state.outcome.exception()
            # A blip is no news; a longer outage is why a run stands still.
            level = logging.WARNING if elapsed > _OUTAGE else logging.INFO
            text = f"{name}: {type(error).__name__}: {error}; trying again in "
            log.log(level, redact(f"{text}{state.upcoming_sleep:.1f} s"))

        retrying = Retrying(
            retry=retry_if_exception(self._may_pass),
            wait=lambda state: self.jitter(ceiling(state)),
            stop=is_too_late,
            before_sleep=log_pause,
            sleep=self.sleep,
            reraise=True,
        )
        return retrying(operation)

    def _may_pass(self, error: BaseException) -> bool:
        is_mistake = not self.knows_host and any(map(is_unknown_host, chain(error)))
        return is_transient(error) and not is_mistake


def is_transient(error: BaseException) -> bool:
    """Return whether the same call may succeed later.

    Of the errors that it was raised from, the first that names a network failure or an HTTP status
    decides: what lies below are a parser's or a socket's own words for it.
    """
    for link in chain(error):
        if _is_network_failure(link):
            return True
        status = http_status(link)
        if status is not None:
            return status in _TRANSIENT_STATUS or error_code(link) in _TRANSIENT_CODES
    return False


def http_status(error: BaseException) -> int | None:
    """Return the HTTP status that an error of botocore, aiohttp, azure or gcsfs carries, if any."""
    response = getattr(error, "response", None)
    if isinstance(response, dict):
        return response.get("ResponseMetadata", {}).get("HTTPStatusCode")
    for name in ("status", "status_code", "code"):
        value = getattr(error, name, None)
        if isinstance(value, int):
            return value
    return None


def is_unknown_host(error: BaseException) -> bool:
    """Return whether no name server knows the host; not that none could be asked."""
    if isinstance(error, socket.gaierror):
        return error.errno in _UNKNOWN_HOST_ERRNO
    return any(sign in str(error) for sign in _UNKNOWN_HOST)


def chain(error: BaseException) -> Iterator[BaseException]:
    """Yield the error, what it was raised from, and so on.

    Ray and botocore keep the cause in attributes of theirs.
    """
    link: BaseException | None = error
    seen: set[int] = set()
    while isinstance(link, BaseException) and id(link) not in seen:
        yield link
        seen.add(id(link))
        below = getattr(link, "kwargs", None)
        below = below.get("error") if isinstance(below, dict) else None
        link = getattr(link, "cause", None) or link.__cause__ or below


def class_names(error: BaseException) -> set[str]:
    """Names of the error's class and of all it derives from."""
    return {base.__name__ for base in type(error).__mro__}


def error_code(error: BaseException) -> str | None:
    """Return the code that S3 gave, such as "NoSuchKey", if any."""
    response = getattr(error, "response", None)
    return response.get("Error", {}).get("Code") if isinstance(response, dict) else None


def _is_network_failure(error: BaseException) -> bool:
    if isinstance(error, ConnectionError | TimeoutError):
        return True
    if isinstance(error, OSError) and error.errno in _TRANSIENT_ERRNO:
        return True
    return not _TRANSIENT_NAMES.isdisjoint(class_names(error))
