"""A capture on a real S3 server over a network that loses answers, and through its restart."""

import uuid

import numpy as np
import pytest

from kdscale.cache.format.records import commit_key
from kdscale.cache.rows import CachedRows
from kdscale.store import Store, open_store
from tests.fault.captures import (
    capture,
    capture_and_read,
    capture_cut_off,
    capture_held,
    capture_recorded,
    read_cut_off,
)
from tests.fault.conftest import Start
from tests.fault.outcome import (
    SHARDS,
    WRITES,
    assert_only_named,
    assert_same,
    assert_undisturbed,
    planted_in,
    rounded,
)
from tests.fault.processes import side_by_side
from tests.proxy import Fault, FaultProxy
from tests.s3 import S3Server

pytestmark = [pytest.mark.fault, pytest.mark.s3, pytest.mark.timeout(300)]

BAD_SHARE = 0.4
BACKENDS = ("native", "fsspec")
# What a client may meet, by method.
NETWORK = [
    *(("PUT", fault) for fault in ("lose_answer", "drop", "slow_down")),
    *(("GET", fault) for fault in ("lose_answer", "drop", "slow_down", "half_body")),
    *(("HEAD", fault) for fault in ("lose_answer", "drop", "slow_down")),
]


@pytest.fixture
def store(s3_env: S3Server) -> Store:
    return open_store(f"{s3_env.url}/{uuid.uuid4().hex}")


@pytest.fixture(params=BACKENDS)
def backend(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


def proxied(server: S3Server, method: str, faults: list[Fault | None]) -> FaultProxy:
    return FaultProxy(server.env["AWS_ENDPOINT_URL"].removeprefix("http://"), method, faults)


def test_the_answer_of_any_write_may_be_lost(
    store: Store, s3_env: S3Server, start: Start, undisturbed: CachedRows, backend: str
) -> None:
    def check(number: int) -> None:
        planted = planted_in(store.child(str(number)))
        with proxied(s3_env, "PUT", [*[None] * number, "lose_answer"]) as proxy:
            settings = {"AWS_ENDPOINT_URL": proxy.endpoint, "KDSCALE_STORE": backend}
            # Each commit is its own, though some are answered with "already there".
            assert start(capture, planted, **settings).result() == SHARDS
            assert (proxy.requests.count("PUT"), proxy.faults) == (WRITES + 1, [])
        assert_only_named(planted.store)
        assert_undisturbed(planted.store, undisturbed, f"lost the answer of write {number}")

    side_by_side(check, [(number,) for number in range(WRITES)])


def test_capture_and_reading_survive_what_passes(
    store: Store, s3_env: S3Server, start: Start, undisturbed: CachedRows, backend: str
) -> None:
    def check(method: str, fault: Fault) -> None:
        planted = planted_in(store.child(f"{method}-{fault}"))
        # Without a rhythm, or an operation of two requests might meet one at each attempt.
        lots = np.random.default_rng(0).random(400) < BAD_SHARE
        with proxied(s3_env, method, [fault if bad else None for bad in lots]) as proxy:
            settings = {"AWS_ENDPOINT_URL": proxy.endpoint, "KDSCALE_STORE": backend}
            assert_same(start(capture_and_read, planted, **settings).result(), undisturbed)
            assert lots[: proxy.requests.count(method)].sum() > SHARDS
        assert_undisturbed(planted.store, undisturbed, f"{fault} of many a {method}")

    side_by_side(check, NETWORK)


@pytest.mark.parametrize("fault", ["lose_answer", "drop", "slow_down"])
def test_a_loser_takes_its_objects_away_over_a_bad_network(
    store: Store,
    s3_env: S3Server,
    start: Start,
    undisturbed: CachedRows,
    backend: str,
    fault: Fault,
) -> None:
    planted = planted_in(store.child("cache"))
    with proxied(s3_env, "DELETE", [fault, fault, None, fault]) as proxy:
        settings = {"AWS_ENDPOINT_URL": proxy.endpoint, "KDSCALE_STORE": backend}
        calls = start(capture_recorded, planted_in(store.child("recorded"))).result()
        first = next(call for call in calls if call.key == commit_key(0))
        loser = start(capture_held, rounded(planted, 1), first.number, "before", **settings)
        assert loser.hear() == "held"
        assert start(capture, planted).result() == SHARDS
        loser.tell("go on")
        assert loser.result() == 0
        assert (proxy.requests.count("DELETE"), proxy.faults) == (2 * SHARDS + 3, [])
    assert_only_named(planted.store)
    assert_undisturbed(planted.store, undisturbed, f"{fault} of deletes")


@pytest.mark.slow
def test_captures_outlive_a_restart_of_the_server(
    store: Store, s3_env: S3Server, start: Start, undisturbed: CachedRows
) -> None:
    """One outage meets captures at each of their writes."""
    calls = start(capture_recorded, planted_in(store.child("recorded"))).result()
    cut = {
        call: start(
            capture_cut_off,
            planted_in(store.child(f"cut-{call.number}")),
            call.number,
            KDSCALE_STORE=BACKENDS[call.number % 2],
        )
        for call in calls
        if call.writes
    }
    assert len(cut) == WRITES
    for worker in cut.values():
        assert worker.hear() == "held"
    s3_env.stop()
    try:
        for worker in cut.values():
            worker.tell("go on")
        for worker in cut.values():
            assert worker.hear() == "cut off"
    finally:
        s3_env.start()
    for call, worker in cut.items():
        assert worker.result() == SHARDS
        cache = store.child(f"cut-{call.number}")
        assert_only_named(cache)
        assert_undisturbed(cache, undisturbed, f"server restarted before {call}")


@pytest.mark.slow
def test_readers_outlive_a_restart_of_the_server(
    store: Store, s3_env: S3Server, start: Start, undisturbed: CachedRows
) -> None:
    start(capture, planted_in(store)).result()
    readers = [
        start(read_cut_off, store, undisturbed, KDSCALE_STORE=backend) for backend in BACKENDS
    ]
    for reader in readers:
        assert reader.hear() == "reading"
    s3_env.stop()
    try:
        for reader in readers:
            assert reader.hear() == "cut off"
    finally:
        s3_env.start()
    for reader in readers:
        reader.tell("end")
        assert reader.result() >= 1
