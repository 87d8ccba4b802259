"""One committer for a store without conditional put, and what becomes of a second one."""

import json
import threading
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from kdscale.errors import KdscaleError
from kdscale.store import PutIfAbsent, SingleCommitter, Store, open_store
from tests.proxy import UnconditionalProxy
from tests.s3 import S3Server


@dataclass
class Clock:
    """Seconds since the epoch, as the test says."""

    now: float = 1_000_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return open_store(str(tmp_path))


@pytest.fixture
def clock() -> Clock:
    return Clock()


def lease(store: Store) -> Any:
    return json.loads(store.get("committer.json"))


def test_it_keeps_the_contract_of_put_if_absent(store: Store, clock: Clock) -> None:
    with SingleCommitter(store, "run-1", clock=clock) as committer:
        commit: PutIfAbsent = committer.put_if_absent
        assert commit("commits/1", b"mine") is True
        assert commit("commits/1", b"mine") is True
        assert commit("commits/1", b"theirs") is False
        assert store.get("commits/1") == b"mine"
        assert store.list() == ["commits/1", "committer.json"]


def test_of_many_threads_one_wins(store: Store, clock: Clock) -> None:
    answers: list[bool] = []
    with SingleCommitter(store, "run-1", clock=clock) as committer:

        def write(number: int) -> None:
            answers.append(committer.put_if_absent("commit", b"%d" % number))

        threads = [threading.Thread(target=write, args=(number,)) for number in range(16)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert sorted(answers) == [False] * 15 + [True]


def test_a_second_one_is_refused_while_the_first_lives(store: Store, clock: Clock) -> None:
    with SingleCommitter(store, "run-1", lease=60, clock=clock):
        clock.now += 59
        with pytest.raises(KdscaleError) as caught:
            SingleCommitter(store, "run-2", lease=60, clock=clock)
    assert "run-1 commits to" in caught.value.problem
    assert str(store) in caught.value.problem
    assert "59 s ago" in caught.value.problem
    assert "60 s after the last renewal" in caught.value.fix
    assert lease(store)["owner"] == "run-1"


def test_a_dead_one_is_followed_after_its_lease(store: Store, clock: Clock) -> None:
    first = SingleCommitter(store, "run-1", lease=60, clock=clock)
    assert first.put_if_absent("commits/1", b"1") is True
    clock.now += 60
    second = SingleCommitter(store, "run-2", lease=60, clock=clock)
    assert (lease(store)["owner"], lease(store)["epoch"]) == ("run-2", 2)
    # The first was not dead, only paused: it learns that it has lost and writes nothing.
    for act in (lambda: first.put_if_absent("commits/2", b"2"), first.renew):
        with pytest.raises(KdscaleError, match=r"run-1 \(epoch 1\) may not.*run-2 \(epoch 2\)"):
            act()
    assert not store.exists("commits/2")
    assert second.put_if_absent("commits/2", b"other") is True
    # Nor does its end give away what is no longer its own.
    first.close()
    assert (lease(store)["owner"], lease(store)["renewed"]) == ("run-2", clock.now)
    second.close()


def test_a_renewed_lease_outlives_its_first_term(store: Store, clock: Clock) -> None:
    with SingleCommitter(store, "run-1", lease=60, clock=clock) as committer:
        clock.now += 50
        committer.renew()
        assert (lease(store)["epoch"], lease(store)["renewed"]) == (1, clock.now)
        clock.now += 50
        with pytest.raises(KdscaleError, match="50 s ago"):
            SingleCommitter(store, "run-2", lease=60, clock=clock)


def test_it_renews_by_itself(store: Store, clock: Clock) -> None:
    written = threading.Event()

    class Watched(type(store)):  # type: ignore[misc] # A class that mypy sees only at run time.
        def put(self, key: str, data: bytes) -> None:
            super().put(key, data)
            if json.loads(data)["renewed"] == 2_000_000.0:
                written.set()

    with SingleCommitter(Watched(store.url), "run-1", lease=0.04, clock=clock):
        clock.now = 2_000_000.0
        assert written.wait(60)
    assert lease(store)["epoch"] == 1


def test_the_same_owner_starts_again_at_once(store: Store, clock: Clock) -> None:
    killed = SingleCommitter(store, "run-1", clock=clock)
    again = SingleCommitter(store, "run-1", clock=clock)
    assert lease(store)["epoch"] == 2
    assert again.put_if_absent("commit", b"1") is True
    with pytest.raises(KdscaleError, match="has taken over"):
        killed.put_if_absent("other", b"1")
    again.close()


def test_a_closed_one_makes_room_and_commits_no_more(store: Store, clock: Clock) -> None:
    first = SingleCommitter(store, "run-1", clock=clock)
    first.close()
    first.close()
    with pytest.raises(KdscaleError, match=r"run-1 of .* is closed"):
        first.put_if_absent("commit", b"1")
    with SingleCommitter(store, "run-2", clock=clock) as second:
        assert lease(store)["epoch"] == 2
        assert second.put_if_absent("commit", b"2") is True
    assert store.get("commit") == b"2"


def test_the_higher_epoch_counts_where_a_stalled_one_writes_late(
    store: Store, clock: Clock
) -> None:
    first = SingleCommitter(store, "run-1", lease=60, clock=clock)
    stale = store.get("committer.json")
    clock.now += 60
    second = SingleCommitter(store, "run-2", lease=60, clock=clock)
    # A renewal that the first had begun before it was paused arrives late.
    store.put("committer.json", stale)
    assert second.put_if_absent("commit", b"2") is True
    assert lease(store)["owner"] == "run-2"
    with pytest.raises(KdscaleError, match="run-2"):
        first.put_if_absent("commit", b"1")
    # A lease that somebody deleted is written again.
    store.delete("committer.json")
    second.renew()
    assert lease(store)["epoch"] == 2
    second.close()


def test_of_two_that_start_together_the_overwritten_one_finds_out(
    store: Store, clock: Clock
) -> None:
    class Slow(type(store)):  # type: ignore[misc] # A class that mypy sees only at run time.
        """Between its write and its read back another committer writes."""

        def put(self, key: str, data: bytes) -> None:
            super().put(key, data)
            other = json.loads(data) | {"owner": "run-2", "token": "another"}
            super().put(key, json.dumps(other).encode())

    with pytest.raises(KdscaleError, match="run-2 commits to"):
        SingleCommitter(Slow(store.url), "run-1", clock=clock)


@pytest.mark.parametrize("text", [b"", b"{", b"[1]", b'{"owner": "x"}', b"\xff"])
def test_a_lease_that_cannot_be_read_is_replaced(store: Store, clock: Clock, text: bytes) -> None:
    store.put("committer.json", text)
    with SingleCommitter(store, "run-1", clock=clock) as committer:
        assert lease(store)["owner"] == "run-1"
        assert committer.put_if_absent("commit", b"1") is True


@contextmanager
def store_without_conditional_put(
    server: S3Server, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Store]:
    with UnconditionalProxy(server.env) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.endpoint)
        yield open_store(f"{server.url}/{uuid.uuid4().hex}")


@pytest.mark.s3
def test_it_decides_where_the_server_does_not(
    s3_env: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    with store_without_conditional_put(s3_env, monkeypatch) as store:
        assert store.put_if_absent("bare", b"1") is True
        assert store.put_if_absent("bare", b"2") is True  # The server cannot.
        with SingleCommitter(store, "run-1") as committer:
            assert committer.put_if_absent("commit", b"1") is True
            assert committer.put_if_absent("commit", b"2") is False
            with pytest.raises(KdscaleError, match="run-1 commits to"):
                SingleCommitter(store, "run-2")
        assert store.get("commit") == b"1"
