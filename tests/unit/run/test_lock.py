"""The lock of a run: one driver at a time, the same job at once, another after a death."""

import json
import multiprocessing
import os
import signal
import threading
from pathlib import Path

import pytest

from kdscale.errors import KdscaleError
from kdscale.run import lock as module
from kdscale.run.lock import LEASE_KEY, RunLockedError, lease_owner, run_lease, this_driver
from kdscale.run.record import RunRecord
from kdscale.store import HeldLease, LeaseConfig, Store, open_store

NOW = 1_000_000.0


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    monkeypatch.setattr(module, "_PAUSE_SECONDS", 0.02)
    return open_store(str(tmp_path))


def held(store: Store, owner: str, now: float = NOW, process: str = "") -> HeldLease:
    config = LeaseConfig(60, claim=store.put_if_absent, clock=lambda: now)
    return HeldLease(store, LEASE_KEY, owner, config, process)


def test_a_second_run_is_refused_with_the_owner_and_a_fix(store: Store) -> None:
    with run_lease(store, "job first"):
        with pytest.raises(RunLockedError) as caught, run_lease(store, "job second", wait=0):
            pass
        assert "job first has held it since 20" in caught.value.problem
        assert "last seen" in caught.value.problem
        assert "kdscale stop first" in caught.value.fix
        assert "--wait-for-lease" in caught.value.fix
        assert caught.value.exit_code == 7
    with run_lease(store, "job second"):
        found = lease_owner(store)
        assert found is not None
        assert (found.owner, found.epoch) == ("job second", 2)


def test_an_owner_that_renews_is_alive_and_the_waiting_end(store: Store) -> None:
    with (
        run_lease(store, "first", seconds=0.4),
        pytest.raises(RunLockedError, match="first has held it"),
        run_lease(store, "second", seconds=3600),
    ):
        pass


def test_a_dead_owner_is_followed_when_its_lease_ends(store: Store) -> None:
    # This one is not renewed; its owner is on another machine.
    first = HeldLease(store, LEASE_KEY, "first", LeaseConfig(3600))
    with run_lease(store, "second", seconds=1) as lease:
        lease.check()
        with pytest.raises(KdscaleError, match=r"second .* has taken over"):
            first.check()


def test_the_same_job_takes_over_at_once(store: Store) -> None:
    first = held(store, "job a")
    second = held(store, "job a")
    second.check()
    with pytest.raises(KdscaleError, match="has taken over"):
        first.check()


def test_a_driver_whose_process_is_gone_is_followed_at_once(store: Store) -> None:
    process = multiprocessing.get_context("fork").Process(target=signal.pause)
    process.start()
    assert process.pid is not None
    name = module._process(process.pid)
    if not name:
        pytest.skip("this machine has no /proc")
    held(store, "first", now=module.time.time(), process=name)
    with pytest.raises(RunLockedError), run_lease(store, "second", wait=0):
        pass
    os.kill(process.pid, signal.SIGKILL)
    # Still a zombie, as its parent has not waited for it.
    with run_lease(store, "second", wait=3600):
        pass
    process.join()


def test_another_start_of_the_process_id_is_another_process(store: Store) -> None:
    own = module._process(os.getpid())
    if not own:
        pytest.skip("this machine has no /proc")
    held(store, "first", now=module.time.time(), process=f"{own}0")
    with run_lease(store, "second", wait=0):
        pass
    held(store, "third", now=module.time.time(), process=f"elsewhere{own}0")
    with pytest.raises(RunLockedError), run_lease(store, "fourth", wait=0):
        pass


def test_a_process_that_died_between_claim_and_lease_is_passed_by(store: Store) -> None:
    held(store, "first").close()
    assert store.put_if_absent(f"{LEASE_KEY}.epochs/000002", b"of a dead one")
    held(store, "second")
    found = lease_owner(store)
    assert found is not None
    assert found.epoch == 3


def test_one_of_many_that_start_together_wins(store: Store) -> None:
    won, refused = [], []
    barrier = threading.Barrier(8)

    def start(number: int) -> None:
        barrier.wait()
        try:
            won.append(held(store, f"run-{number}"))
        except KdscaleError as error:
            refused.append(error)

    threads = [threading.Thread(target=start, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(refused) == 7
    (only,) = won
    only.check()


def test_nothing_is_written_once_the_lease_is_lost(store: Store) -> None:
    first = held(store, "first")
    fence = first.fence()
    record = RunRecord(store, "run", "fingerprint", first.check)
    record.pinned("a", "b", 1)
    fence.check()
    before = store.get("run.json")
    held(store, "second", NOW + 61)
    for write in (lambda: record.pinned("c", "d", 2), fence.check, first.check_known):
        with pytest.raises(KdscaleError, match=r"first \(epoch 1\) may not write to"):
            write()
    assert store.get("run.json") == before


def test_a_ray_job_is_named_by_its_id(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_JOB_CONFIG_JSON_ENV_VAR", raising=False)
    assert this_driver().startswith(f"process {os.getpid()} of ")
    job = {"metadata": {"job_submission_id": "tiny-1"}}
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", json.dumps(job))
    assert this_driver() == "job tiny-1"
