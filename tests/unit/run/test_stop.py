"""A driver that is asked to stop, by a signal or through the store."""

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from kdscale.run import stop
from kdscale.run.record import RunRecord
from kdscale.run.stop import STOP_KEY, StoppedError, StopRequests, request_stop
from kdscale.store import Store, open_store

PATIENCE_SECONDS = 60


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    monkeypatch.setattr(stop, "_POLL_SECONDS", 0.02)
    return open_store(str(tmp_path))


def signalled(number: int) -> None:
    """Send this process a signal, and be in the middle of something long when it comes."""
    os.kill(os.getpid(), number)
    time.sleep(PATIENCE_SECONDS)


def requested(store: Store) -> None:
    """Ask through the store, in the middle of something long."""
    request_stop(store, seconds=3600)
    time.sleep(PATIENCE_SECONDS)


def until(ready: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not ready():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_first_signal_is_graceful_and_the_second_ends_the_run(
    store: Store, number: int
) -> None:
    before = signal.getsignal(number)
    with StopRequests(store) as requests:
        requests.check()
        with requests.graceful():
            assert not requests.stop_requested()
            os.kill(os.getpid(), number)
            until(requests.stop_requested)
            with pytest.raises(StoppedError, match="at once"):
                signalled(number)
        with pytest.raises(StoppedError, match="as asked by SIG"):
            requests.check()
    assert signal.getsignal(number) is before


def test_a_request_in_the_store_is_found_and_cleared_at_the_end(store: Store) -> None:
    with StopRequests(store) as requests, requests.graceful():
        name = request_stop(store, seconds=3600)
        until(requests.stop_requested)
        assert f"asked by the request {name[:8]}" in requests.error().problem
    assert not store.exists(STOP_KEY)


@pytest.mark.parametrize(
    ("act", "cause"),
    [(lambda store: signalled(signal.SIGINT), "SIGINT"), (requested, "the request")],
)
def test_a_run_without_a_state_to_save_ends_at_once(
    store: Store, act: Callable[[Store], None], cause: str
) -> None:
    with StopRequests(store), pytest.raises(StoppedError, match=f"at once by {cause}"):
        act(store)


def test_after_the_time_that_was_given_the_run_ends(store: Store) -> None:
    with StopRequests(store) as requests, requests.graceful():
        request_stop(store, seconds=0)
        with pytest.raises(StoppedError, match="did not stop within the time"):
            until(lambda: requests.stop_requested() and False)


def test_a_request_from_before_the_run_is_dropped(store: Store) -> None:
    request_stop(store, seconds=1)
    with StopRequests(store) as requests, requests.graceful():
        assert not store.exists(STOP_KEY)
        assert not requests.stop_requested()


@pytest.mark.parametrize("text", [b"", b"{", b'{"id": 3}', b"[]"])
def test_an_invalid_request_is_ignored(store: Store, text: bytes) -> None:
    with StopRequests(store) as requests:
        store.put(STOP_KEY, text)
        assert requests._read() is None


def test_the_record_of_a_stopped_stage_says_so(store: Store) -> None:
    record = RunRecord(store, "run", "fingerprint")
    with pytest.raises(StoppedError), record.running("distill", "f"):
        raise StoppedError("stopped")
    assert record._stages["distill"]["state"] == "stopped"
    assert record.fingerprint("distill") is None
    assert StoppedError("x").exit_code == 5
