"""Two drivers of one run, as real processes on a local store and on a real S3 server."""

import os

import pytest

from kdscale.errors import KdscaleError
from kdscale.run.lock import RunLockedError, lease_owner, run_lease
from kdscale.store import Store
from tests.fault.conftest import Start
from tests.fault.processes import Pipe

pytestmark = [pytest.mark.fault, pytest.mark.timeout(300)]

TERM = 4.0


def drive(
    pipe: Pipe, store: Store, owner: str, wait: float | None, seconds: float, elsewhere: bool
) -> None:
    """Be a driver that says the epoch of its lease, or why it has none.

    Then write at every message, and say whether that is allowed.
    """
    if elsewhere:
        # As on another machine, where it cannot be known whether this process is alive.
        from kdscale.run import lock as lease

        lease._machine = lambda: f"machine of {os.getpid()}"  # type: ignore[assignment]
    try:
        with run_lease(store, owner, wait, seconds) as lease:
            said = lease_owner(store)
            assert said is not None
            while pipe.ask(said.epoch) == "write":
                try:
                    lease.check()
                    store.put("written", owner.encode())
                except KdscaleError as error:
                    pipe.say(error.problem)
    except RunLockedError as error:
        pipe.say(error.problem)


def test_a_second_driver_is_refused_and_follows_a_killed_one(store: Store, start: Start) -> None:
    first = start(drive, store, "job first", None, TERM, True)
    assert first.hear() == 1
    assert "job first has held it since" in start(drive, store, "job b", 0, TERM, True).hear()
    # Without a time it waits until it has seen the holder renew its lease.
    assert "job first has held it since" in start(drive, store, "job b", None, TERM, True).hear()
    first.kill()
    # The lease of a process on another machine has to run out.
    assert start(drive, store, "job second", None, TERM, True).hear() == 2


def test_a_killed_driver_is_followed_at_once_on_its_machine_and_by_its_job(
    store: Store, start: Start
) -> None:
    first = start(drive, store, "job first", None, 3600, False)
    assert first.hear() == 1
    first.kill()
    second = start(drive, store, "job second", 0, 3600, False)
    assert second.hear() == 2
    # The job's second submission, from a driver that does not know what became of the first.
    assert start(drive, store, "job second", 0, 3600, True).hear() == 3


def test_a_frozen_driver_finds_out_and_writes_no_more(store: Store, start: Start) -> None:
    first = start(drive, store, "job first", None, TERM, True)
    assert first.hear() == 1
    first.freeze()
    second = start(drive, store, "job second", None, TERM, True)
    assert second.hear() == 2
    second.tell("write")
    assert second.hear() == 2
    first.thaw()
    first.tell("write")
    assert "job first (epoch 1) may not write to" in first.hear()
    assert store.get("written") == b"job second"
