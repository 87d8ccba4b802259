"""Rates and times left, at the start, after a resume, and for the next piece of work."""

import pytest

from kdscale.workers import progress
from kdscale.workers.hang_detector import RankHeartbeat
from kdscale.workers.progress import Failure, ProgressActor, Snapshot


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [100.0]
    monkeypatch.setattr(progress.time, "time", lambda: now[0])
    return now


def test_rate_and_time_left_count_from_where_the_attempt_started(clock: list[float]) -> None:
    board = ProgressActor()
    board.update(40, 100, 4_000, "teacher")  # resumed at step 40
    assert str(board.take()[0]) == "40/100, teacher"
    clock[0] += 10
    board.update(60, 100, 6_000, "teacher")
    snapshot, _ = board.take()
    assert snapshot.rate() == pytest.approx(200)
    assert snapshot.seconds_left() == pytest.approx(20)
    assert str(snapshot) == "60/100, 200 tokens/s, 20 s left, teacher"


def test_a_restart_and_other_work_start_the_clock_again(clock: list[float]) -> None:
    board = ProgressActor()
    board.update(0, 100, 0, "student")
    clock[0] += 10
    board.update(50, 100, 500, "student")
    board.update(30, 100, 300, "student")  # back to the checkpoint
    clock[0] += 5
    board.update(40, 100, 400, "student")
    assert board.take()[0].rate() == pytest.approx(20)
    board.update(60, 100, 0, "baseline")
    assert board.take()[0].seconds_left() is None


def test_lines_are_taken_once(clock: list[float]) -> None:
    board = ProgressActor()
    board.say("one")
    board.say("two")
    assert board.take() == (Snapshot(), ["one", "two"])
    assert board.take() == (Snapshot(), [])


def test_an_attempt_that_counts_its_own_tokens_has_a_rate_of_its_own(clock: list[float]) -> None:
    board = ProgressActor()
    board.update(0, 100, 0, "rows")
    clock[0] += 10
    board.update(50, 100, 5_000, "rows")
    board.update(50, 100, 0, "rows")  # all of it was committed; this attempt has run nothing yet
    assert board.take()[0].rate() == 0
    clock[0] += 5
    board.update(60, 100, 1_000, "rows")
    assert board.take()[0].rate() == pytest.approx(200)


def test_a_failure_is_kept_and_the_wait_after_it_is_in_no_rate(clock: list[float]) -> None:
    board = ProgressActor()
    board.update(0, 100, 0, "student")
    clock[0] += 10
    board.update(50, 100, 500, "student")
    board.fail("rank 1 failed: gone")
    snapshot, _ = board.take()
    assert (snapshot.done, snapshot.rate(), snapshot.seconds_left()) == (50, 0, None)
    assert snapshot.failures == (Failure(110.0, "rank 1 failed: gone"),)
    clock[0] += 30
    board.update(50, 100, 500, "student")  # the checkpoint was of that very step
    clock[0] += 5
    board.update(60, 100, 600, "student")
    snapshot, _ = board.take()
    assert snapshot.rate() == pytest.approx(20)
    assert len(snapshot.failures) == 1


def test_a_sign_is_answered_with_what_is_asked_and_leaves_are_counted(clock: list[float]) -> None:
    board = ProgressActor()
    for rank in (0, 1):
        board.join(RankHeartbeat(rank, 0), f"actor {rank}")
    assert board.beat(RankHeartbeat(0, 0)) == ""
    board.ask("regroup")
    assert board.beat(RankHeartbeat(1, 0)) == "regroup"
    board.leave(0, fulfilled=True)
    assert (board.left(), board.present()) == (1, 1)
    board.leave(1, fulfilled=True)
    assert (board.left(), board.present()) == (2, 0)
    # The next group starts with a clean slate.
    board.ask("")
    assert (board.left(), board.beat(RankHeartbeat(0, 1))) == (0, "")


def test_a_request_to_stop_is_never_taken_back(clock: list[float]) -> None:
    board = ProgressActor()
    board.ask("stop")
    for wish in ("regroup", ""):
        board.ask(wish)
        assert board.beat(RankHeartbeat(0, 0)) == "stop"


def test_a_silent_rank_comes_with_its_actor(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    board = ProgressActor()
    for rank in (0, 1):
        board.join(RankHeartbeat(rank, 0), f"actor {rank}")
    now[0] = 11.0
    board.beat(RankHeartbeat(0, 0))
    ((silent, actor),) = board.silent(10.0)
    assert (silent.sign.rank, actor) == (1, "actor 1")
    board.close()
    assert board.silent(10.0) == []
