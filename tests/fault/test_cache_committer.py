"""A store that ignores the condition of a put: one process commits for all.

It may be killed or paused, and is followed by another.
"""

import time
import uuid
from collections.abc import Iterator
from multiprocessing.managers import BaseManager
from typing import Any, cast

import pytest

from kdscale.cache.format.records import commit_key
from kdscale.cache.maintain.repair import repair
from kdscale.cache.maintain.verify import verify
from kdscale.cache.rows import CachedRows
from kdscale.errors import KdscaleError
from kdscale.store import PutIfAbsent, SingleCommitter, Store, conditional_put, open_store
from tests.fault.captures import MOMENTS, Call, Moment, WatchedStore, capture
from tests.fault.conftest import Start
from tests.fault.outcome import (
    SHARDS,
    assert_each_of_one,
    assert_same,
    assert_undisturbed,
    committed_by,
    decoded,
    planted_in,
    rounded,
)
from tests.fault.processes import Pipe, Worker, kill_me, side_by_side
from tests.proxy import UnconditionalProxy
from tests.s3 import S3Server
from tests.unit.cache.planted import Planted

pytestmark = [pytest.mark.fault, pytest.mark.s3, pytest.mark.timeout(300)]

LEASE = 60.0
LATER = LEASE + 1
RECORDS = 2 + SHARDS  # Plan, commits, manifest.
WORKERS = 3


class Office(BaseManager):
    """How workers reach the process that commits."""


def commit_for_all(pipe: Pipe, store: Store, owner: str, later: float = 0.0) -> None:
    """Be the committer until killed, by a clock that is `later` seconds ahead.

    Says its address, or why it must not commit.
    """
    try:
        committer = SingleCommitter(store, owner, LEASE, clock=lambda: time.time() + later)
    except KdscaleError as error:
        pipe.say(error.problem)
        return
    Office.register("committer", callable=lambda: committer, exposed=["put_if_absent"])
    server = Office(("127.0.0.1", 0)).get_server()
    pipe.say(server.address)
    server.serve_forever()


def commit_until_killed(pipe: Pipe, store: Store, number: int, moment: Moment) -> None:
    """Commit until killed at the write of its record number `number`."""
    records: list[str] = []

    def watch(call: Call, now: Moment) -> None:
        if call.name == "put" and call.key != "committer.json":
            if now == "before":
                records.append(call.key)
            if (len(records), now) == (number + 1, moment):
                kill_me()

    commit_for_all(pipe, cast(Store, WatchedStore(store, watch)), "first")


def commit_until_held(pipe: Pipe, store: Store, key: str) -> None:
    """Commit until held between its look at the lease and its write of `key`."""

    def watch(call: Call, now: Moment) -> None:
        if (call.name, call.key, now) == ("put", key, "before"):
            pipe.ask("held")

    commit_for_all(pipe, cast(Store, WatchedStore(store, watch)), "first")


def capture_through(pipe: Pipe, planted: Planted, address: Any, held_at: str | None = None) -> int:
    """Capture through the committer at `address`; wait before the commit `held_at` for a go."""
    Office.register("committer")
    office = Office(address)
    office.connect()
    committer: PutIfAbsent = office.committer().put_if_absent  # type: ignore[attr-defined]  # See `register`.

    def commit(key: str, data: bytes) -> bool:
        if key == held_at:
            pipe.ask("held")
        return committer(key, data)

    return capture(pipe, planted, commit)


def is_conditional(_: Pipe, store: Store) -> bool:
    return conditional_put(store)


@pytest.fixture
def settings(s3_env: S3Server) -> Iterator[dict[str, str]]:
    """Those of workers whose server has no conditional put."""
    with UnconditionalProxy(s3_env.env) as proxy:
        yield {"AWS_ENDPOINT_URL": proxy.endpoint}


@pytest.fixture
def store(s3_env: S3Server) -> Store:
    return open_store(f"{s3_env.url}/{uuid.uuid4().hex}")


def test_workers_commit_exactly_once_through_one_process(
    store: Store, settings: dict[str, str], start: Start, undisturbed: CachedRows
) -> None:
    assert start(is_conditional, store, **settings).result() is False
    attempts = [rounded(planted_in(store), change) for change in range(WORKERS)]
    address = start(commit_for_all, store, "first", **settings).hear()
    workers = [start(capture_through, attempt, address, **settings) for attempt in attempts]
    assert sum(worker.result() for worker in workers) == SHARDS
    assert_each_of_one(store, attempts, undisturbed, "no conditional put")


@pytest.mark.slow
def test_a_committer_killed_at_any_record_is_followed_by_another(
    store: Store, settings: dict[str, str], start: Start, undisturbed: CachedRows
) -> None:
    def check(number: int, moment: Moment) -> None:
        planted = planted_in(store.child(f"{number}-{moment}"))

        def begin() -> list[Worker]:
            return [start(capture_through, planted, address, **settings) for _ in range(WORKERS)]

        first = start(commit_until_killed, planted.store, number, moment, **settings)
        address = first.hear()
        workers = begin()
        first.await_death()
        for worker in workers:
            kind, value = worker.end()
            # Who finds every record written has no need of a committer.
            is_over = (number, moment) == (RECORDS - 1, "after") and kind == "returned"
            assert is_over or (kind == "failed" and "Error" in value)
        refusal = start(commit_for_all, planted.store, "second", **settings).hear()
        assert refusal.startswith("first commits to")
        address = start(commit_for_all, planted.store, "second", LATER, **settings).hear()
        for worker in begin():
            worker.result()
        assert_undisturbed(planted.store, undisturbed, f"killed {moment} record {number}")

    side_by_side(check, [(n, moment) for n in range(RECORDS) for moment in MOMENTS])


def test_a_committer_that_was_frozen_is_fenced_off(
    store: Store, settings: dict[str, str], start: Start, undisturbed: CachedRows
) -> None:
    planted = planted_in(store)
    first = start(commit_for_all, store, "first", **settings)
    slow = start(capture_through, rounded(planted, 1), first.hear(), commit_key(1), **settings)
    assert slow.hear() == "held"
    first.freeze()
    second = start(commit_for_all, store, "second", LATER, **settings)
    assert start(capture_through, planted, second.hear(), **settings).result() == 1
    first.thaw()
    slow.tell("go on")
    assert "first (epoch 1) may not commit to" in slow.failure()
    expected = committed_by(rounded(planted, 1), undisturbed, shards=1)
    assert_undisturbed(store, expected, "frozen committer")


def test_a_write_that_slips_past_the_lease_is_found_and_repaired(
    store: Store, settings: dict[str, str], start: Start, undisturbed: CachedRows
) -> None:
    """What no lease can rule out on such a store: the pause is between the look and the put."""
    planted = planted_in(store)
    late = rounded(planted, 1)
    first = start(commit_until_held, store, commit_key(1), **settings)
    slow = start(capture_through, late, first.hear(), **settings)
    assert first.hear() == "held"
    second = start(commit_for_all, store, "second", LATER, **settings)
    assert start(capture_through, planted, second.hear(), **settings).result() == 1
    first.tell("go on")
    assert "first (epoch 1) may not commit to" in slow.failure()
    # Readers have what was published; the commit is of the one that came late.
    assert_same(decoded(store), committed_by(late, undisturbed, shards=1))
    assert [damage.key for damage in verify(store).bad] == [commit_key(1)]
    report = repair(store)
    assert (report.restored, report.withdrawn, report.lost) == ([commit_key(1)], [], [])
    assert verify(store).bad == []
    assert_same(decoded(store), committed_by(late, undisturbed, shards=2))
