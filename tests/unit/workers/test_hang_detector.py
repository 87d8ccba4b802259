"""Who is to blame for a group that stands still."""

import threading
from dataclasses import replace

import pytest

from kdscale.workers.hang_detector import HangDetector, HeartbeatThread, HungRank, RankHeartbeat

TERM = 10.0


def sign(rank: int, **changes: object) -> RankHeartbeat:
    return replace(RankHeartbeat(rank, 0, "node", 100 + rank, "step 3", 3), **changes)


def silent(watch: HangDetector, now: float) -> list[int]:
    return [each.heartbeat.rank for each in watch.hung(TERM, now)]


def test_a_rank_without_signs_is_named_after_its_term() -> None:
    watch = HangDetector()
    watch.see(sign(0), 0.0)
    watch.see(sign(1), 0.0)
    watch.see(sign(0, idle=10.0, waits=True), 10.0)
    assert silent(watch, 10.0) == []
    # Rank 0 stands still as well, but it lives: it waits for rank 1.
    watch.see(sign(0, idle=10.5, waits=True), 10.5)
    assert silent(watch, 10.5) == [1]


def test_of_ranks_that_stand_still_the_one_that_waits_for_nobody_is_named() -> None:
    watch = HangDetector()
    watch.see(sign(0, idle=11.0, waits=True, beats=4), 0.0)
    watch.see(sign(1, idle=11.0), 0.0)
    watch.see(sign(2, idle=11.0, beats=4), 0.0)
    assert silent(watch, 0.0) == [1]


def test_all_are_named_where_each_waits_for_another() -> None:
    watch = HangDetector()
    watch.see(sign(0, idle=11.0, waits=True), 0.0)
    watch.see(sign(1, idle=11.0, waits=True), 0.0)
    assert silent(watch, 0.0) == [0, 1]


def test_those_who_wait_for_one_at_work_are_not_to_blame() -> None:
    watch = HangDetector()
    watch.see(sign(0, idle=60.0, waits=True), 0.0)
    watch.see(sign(1, idle=9.0), 0.0)
    assert silent(watch, 0.0) == []


def test_a_rank_that_is_through_and_a_group_that_failed_are_not_watched() -> None:
    watch = HangDetector()
    watch.see(sign(0), 0.0)
    watch.see(sign(1), 0.0)
    watch.leave(1)
    assert watch.present() == 1
    watch.close()
    assert watch.present() == 0
    # A last sign of the failed group comes late.
    watch.see(sign(0), 1.0)
    assert silent(watch, 100.0) == []
    watch.see(sign(0, attempt=1), 2.0)
    assert silent(watch, 12.0) == []
    assert silent(watch, 12.1) == [0]


def test_a_newer_group_ends_the_watch_over_the_older() -> None:
    watch = HangDetector()
    watch.see(sign(0), 0.0)
    watch.see(sign(1), 0.0)
    watch.see(sign(0, attempt=1), 50.0)
    watch.see(sign(1), 50.0)
    assert watch.present() == 1
    assert silent(watch, 55.0) == []


def test_a_message_names_rank_process_node_and_place() -> None:
    assert str(HungRank(sign(1), 12.4, process_alive=False)) == (
        "rank 1 (pid 101 on node) hangs: no heartbeat since step 3, for 12 s"
    )
    stuck = sign(1, frame="loop.py:90 train")
    assert str(HungRank(stuck, 12.4, process_alive=True)) == (
        "rank 1 (pid 101 on node) hangs: no progress since step 3, for 12 s, in loop.py:90 train"
    )


def test_a_heart_tells_how_far_the_work_is_and_hears_what_is_asked(
    capfd: pytest.CaptureFixture[str],
) -> None:
    signs: list[RankHeartbeat] = []
    idle, gone_on = threading.Event(), threading.Event()

    def send(sign: RankHeartbeat) -> str:
        signs.append(sign)
        if sign.place == "step 1" and sign.frame:
            idle.set()
        if sign.place == "step 2":
            gone_on.set()
        return "stop"

    heart = HeartbeatThread(3, 1, 0.2, send)
    heart.beat("step 1")
    with heart.waiting():
        assert idle.wait(60)
    heart.beat("step 2")
    assert gone_on.wait(60)
    heart.stop()
    assert heart.signal == "stop"
    assert {(sign.rank, sign.attempt) for sign in signs} == {(3, 1)}
    stuck = next(sign for sign in signs if sign.frame)
    assert (stuck.place, stuck.beats, stuck.waits) == ("step 1", 1, True)
    assert stuck.idle >= 0.1
    later = next(sign for sign in signs if sign.place == "step 2")
    assert (later.beats, later.waits) == (2, False)
    # Where all threads of the process stand, once.
    assert capfd.readouterr().err.count("most recent call first") >= 2
