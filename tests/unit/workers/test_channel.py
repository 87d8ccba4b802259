"""The channel: progress and its rates, heartbeats and signals, and the jobs of worker groups."""

import pytest

from kdscale.errors import KdscaleError
from kdscale.workers import channel as module
from kdscale.workers.channel import Assignment, Channel
from kdscale.workers.hang_detector import RankHeartbeat
from kdscale.workers.progress import Failure, StageProgress


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [100.0]
    monkeypatch.setattr(module.time, "time", lambda: now[0])
    return now


def drained(channel: Channel) -> StageProgress:
    found = channel.drain()
    assert found is not None
    return found[0]


def test_rate_and_time_left_count_from_where_the_attempt_started(clock: list[float]) -> None:
    channel = Channel()
    channel.update(40, 100, 4_000, "teacher")  # resumed at step 40
    assert str(drained(channel)) == "40/100, teacher"
    clock[0] += 10
    channel.update(60, 100, 6_000, "teacher")
    snapshot = drained(channel)
    assert snapshot.tokens_per_second == pytest.approx(200)
    assert snapshot.seconds_left == pytest.approx(20)
    assert str(snapshot) == "60/100, 200 tokens/s, 20 s left, teacher"


def test_a_restart_and_other_work_start_the_clock_again(clock: list[float]) -> None:
    channel = Channel()
    channel.update(0, 100, 0, "student")
    clock[0] += 10
    channel.update(50, 100, 500, "student")
    channel.update(30, 100, 300, "student")  # back to the checkpoint
    clock[0] += 5
    channel.update(40, 100, 400, "student")
    assert drained(channel).tokens_per_second == pytest.approx(20)
    channel.update(60, 100, 0, "baseline")
    assert drained(channel).seconds_left is None


def test_lines_are_taken_once(clock: list[float]) -> None:
    channel = Channel()
    channel.log_line("one")
    channel.log_line("two")
    assert channel.drain() == (StageProgress(), ["one", "two"])
    assert channel.drain() == (StageProgress(), [])


def test_an_attempt_that_counts_its_own_tokens_has_a_rate_of_its_own(clock: list[float]) -> None:
    channel = Channel()
    channel.update(0, 100, 0, "rows")
    clock[0] += 10
    channel.update(50, 100, 5_000, "rows")
    channel.update(50, 100, 0, "rows")  # all of it was committed; this attempt has run nothing yet
    assert drained(channel).tokens_per_second == 0
    clock[0] += 5
    channel.update(60, 100, 1_000, "rows")
    assert drained(channel).tokens_per_second == pytest.approx(200)


def test_a_failure_is_kept_and_the_wait_after_it_is_in_no_rate(clock: list[float]) -> None:
    channel = Channel()
    channel.update(0, 100, 0, "student")
    clock[0] += 10
    channel.update(50, 100, 500, "student")
    channel.close_group("rank 1 failed: gone")
    snapshot = drained(channel)
    assert (snapshot.done, snapshot.tokens_per_second, snapshot.seconds_left) == (50, 0, None)
    assert snapshot.failures == (Failure(110.0, "rank 1 failed: gone"),)
    clock[0] += 30
    channel.update(50, 100, 500, "student")  # the checkpoint was of that very step
    clock[0] += 5
    channel.update(60, 100, 600, "student")
    snapshot = drained(channel)
    assert snapshot.tokens_per_second == pytest.approx(20)
    assert len(snapshot.failures) == 1


def test_a_heartbeat_is_answered_with_the_signal(clock: list[float]) -> None:
    channel = Channel()
    for rank in (0, 1):
        channel.join(RankHeartbeat(rank, 0), f"actor {rank}")
    assert channel.beat(RankHeartbeat(0, 0)) == ""
    channel.signal("resize")
    assert channel.beat(RankHeartbeat(1, 0)) == "resize"
    channel.leave(0)
    assert channel.present() == 1
    channel.leave(1)
    assert channel.present() == 0
    channel.signal("")
    assert channel.beat(RankHeartbeat(0, 1)) == ""


def test_a_request_to_stop_is_never_taken_back(clock: list[float]) -> None:
    channel = Channel()
    channel.signal("stop")
    for signal in ("resize", ""):
        channel.signal(signal)
        assert channel.beat(RankHeartbeat(0, 0)) == "stop"


def test_a_hung_rank_comes_with_its_actor(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    channel = Channel()
    for rank in (0, 1):
        channel.join(RankHeartbeat(rank, 0), f"actor {rank}")
    now[0] = 11.0
    channel.beat(RankHeartbeat(0, 0))
    ((hung, actor),) = channel.hung_ranks(10.0)
    assert (hung.heartbeat.rank, actor) == (1, "actor 1")
    channel.close_group()
    assert channel.hung_ranks(10.0) == []


def with_job(name: str = "first") -> Channel:
    channel = Channel()
    channel.put_job([name], "cache", "tiny", "fit")
    return channel


def assignment(number: int, attempt: int, name: str) -> Assignment:
    return Assignment(number, attempt, [name], "cache", "tiny")


def test_groups_are_counted() -> None:
    channel = with_job()
    assert [channel.next_job("fit", "a", -1) for _ in range(2)] == [assignment(0, 0, "first")] * 2
    assert [channel.next_job("fit", "b", -1) for _ in range(2)] == [assignment(0, 1, "first")] * 2
    assert channel.starts() == 2


def test_after_a_final_error_no_group_tries_again() -> None:
    channel = with_job()
    channel.next_job("fit", "a", -1)
    assert channel.poll() == (False, None)
    error = KdscaleError("a", "b")
    channel.fail(error)
    channel.fail(KdscaleError("later", "c"))
    assert channel.poll() == (False, error)
    assert channel.next_job("fit", "b", -1) == "end"


def test_a_job_is_done_when_all_ranks_of_one_group_have_done_it() -> None:
    channel = with_job()
    channel.next_job("fit", "a", -1)
    channel.mark_done("a", 0, 2)
    channel.mark_done("b", 1, 2)
    assert channel.poll() == (False, None)
    channel.mark_done("b", 1, 2)
    assert channel.poll() == (False, None)
    channel.mark_done("b", 0, 2)
    assert channel.poll() == (True, None)


def test_a_rank_waits_for_the_next_job_whose_groups_are_counted_anew() -> None:
    channel = with_job()
    channel.next_job("fit", "a", -1)
    channel.update(5, 10, 0, "rows")
    assert channel.next_job("fit", "a", 0) == "wait"
    channel.mark_done("a", 0, 1)
    assert channel.next_job("fit", "late", -1) == "wait", "nothing is left of it to do"
    channel.put_job(["second"], "cache", "tiny", "fit")
    assert channel.poll() == (False, None)
    assert channel.drain() == (StageProgress(), [])
    assert channel.next_job("fit", "b", -1) == assignment(1, 0, "second")
    assert channel.next_job("fit", "a", 0) == assignment(1, 1, "second")
    channel.admit("")
    assert channel.next_job("fit", "a", 1) == "end"


def test_only_the_ranks_of_the_admitted_fit_have_work() -> None:
    channel = with_job()
    channel.next_job("fit", "a", -1)
    channel.admit("next fit")
    assert channel.next_job("fit", "a", -1) == "end"
    # The groups of one job are counted over its fits: heartbeats of the newer ones count.
    assert channel.next_job("next fit", "b", -1) == assignment(0, 1, "first")
