"""The detector of hung ranks, and the thread that sends heartbeats."""

import threading
from dataclasses import replace

import pytest

from kdscale.workers.hang_detector import HangDetector, HeartbeatThread, HungRank, RankHeartbeat

TERM = 10.0


def beat(rank: int, **changes: object) -> RankHeartbeat:
    return replace(RankHeartbeat(rank, 0, "node", 100 + rank, "step 3", 3), **changes)


def hung(detector: HangDetector, now: float) -> list[int]:
    return [each.heartbeat.rank for each in detector.hung(TERM, now)]


def test_a_rank_without_heartbeats_is_named_after_its_term() -> None:
    detector = HangDetector()
    detector.see(beat(0), 0.0)
    detector.see(beat(1), 0.0)
    detector.see(beat(0, idle=10.0, waits=True), 10.0)
    assert hung(detector, 10.0) == []
    # Rank 0 makes no progress either, but it is alive: it waits for rank 1.
    detector.see(beat(0, idle=10.5, waits=True), 10.5)
    assert hung(detector, 10.5) == [1]


WAITING = {"idle": 11.0, "waits": True}


@pytest.mark.parametrize(
    ("heartbeats", "named"),
    [
        # Of several without progress, the one that is least far and waits for no other.
        ([beat(0, beats=4, **WAITING), beat(1, idle=11.0), beat(2, idle=11.0, beats=4)], [1]),
        # All, if each waits for another.
        ([beat(0, **WAITING), beat(1, **WAITING)], [0, 1]),
        # None, if they wait for one at work.
        ([beat(0, idle=60.0, waits=True), beat(1, idle=9.0)], []),
    ],
)
def test_the_rank_that_others_wait_for_is_named(
    heartbeats: list[RankHeartbeat], named: list[int]
) -> None:
    detector = HangDetector()
    for heartbeat in heartbeats:
        detector.see(heartbeat, 0.0)
    assert hung(detector, 0.0) == named


def test_a_rank_that_has_ended_and_a_group_that_failed_are_not_watched() -> None:
    detector = HangDetector()
    detector.see(beat(0), 0.0)
    detector.see(beat(1), 0.0)
    detector.leave(1)
    assert detector.present() == 1
    detector.close()
    assert detector.present() == 0
    # A last heartbeat of the failed group comes late.
    detector.see(beat(0), 1.0)
    assert hung(detector, 100.0) == []
    detector.see(beat(0, attempt=1), 2.0)
    assert hung(detector, 12.0) == []
    assert hung(detector, 12.1) == [0]


def test_a_newer_group_ends_the_watch_over_the_older() -> None:
    detector = HangDetector()
    detector.see(beat(0), 0.0)
    detector.see(beat(1), 0.0)
    detector.see(beat(0, attempt=1), 50.0)
    detector.see(beat(1), 50.0)
    assert detector.present() == 1
    assert hung(detector, 55.0) == []


def test_a_message_names_rank_process_node_and_place() -> None:
    assert str(HungRank(beat(1), 12.4, process_alive=False)) == (
        "rank 1 (pid 101 on node) hangs: no heartbeat since step 3, for 12 s"
    )
    stuck = beat(1, frame="loop.py:90 train")
    assert str(HungRank(stuck, 12.4, process_alive=True)) == (
        "rank 1 (pid 101 on node) hangs: no progress since step 3, for 12 s, in loop.py:90 train"
    )


def test_a_heartbeat_says_how_far_the_work_is_and_brings_the_signal(
    capfd: pytest.CaptureFixture[str],
) -> None:
    sent: list[RankHeartbeat] = []
    idle, resumed = threading.Event(), threading.Event()

    def send(heartbeat: RankHeartbeat) -> str:
        sent.append(heartbeat)
        if heartbeat.place == "step 1" and heartbeat.frame:
            idle.set()
        if heartbeat.place == "step 2":
            resumed.set()
        return "stop"

    thread = HeartbeatThread(3, 1, 0.2, send)
    thread.beat("step 1")
    with thread.waiting():
        assert idle.wait(60)
    thread.beat("step 2")
    assert resumed.wait(60)
    thread.stop()
    assert thread.signal == "stop"
    assert {(each.rank, each.attempt) for each in sent} == {(3, 1)}
    stuck = next(each for each in sent if each.frame)
    assert (stuck.place, stuck.beats, stuck.waits) == ("step 1", 1, True)
    assert stuck.idle >= 0.1
    later = next(each for each in sent if each.place == "step 2")
    assert (later.beats, later.waits) == (2, False)
    # The stacks of all threads of the process, once.
    assert capfd.readouterr().err.count("most recent call first") >= 2
