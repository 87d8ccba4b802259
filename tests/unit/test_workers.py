"""What groups find at their desk, and what a failed stage tells its user."""

from pathlib import Path

import pytest

from kdscale.desk import Desk, Turn
from kdscale.errors import KdscaleError
from kdscale.progress import Reporter
from kdscale.workers import current_worker, events, group


class GroupError(Exception):
    """Looks like Ray Train's: an exception a rank."""

    def __init__(self, failures: dict[int, Exception]) -> None:
        super().__init__("2 workers failed")
        self.worker_failures = failures


def test_a_kdscale_error_of_any_rank_is_what_the_user_reads() -> None:
    ours = KdscaleError("The cache is damaged.", "Repair it.")
    wrapped = RuntimeError("outer")
    wrapped.__cause__ = ours
    error = GroupError({0: ConnectionError("peer lost"), 1: wrapped})
    assert group._readable(error, "distill") is ours


def test_other_failures_name_the_stage_and_say_how_to_go_on() -> None:
    error = group._readable(GroupError({0: ConnectionError("peer lost")}), "cache")
    assert isinstance(error, KdscaleError)
    assert "'cache'" in error.problem
    assert "finished work is kept" in error.fix


def test_the_last_line_of_a_traceback_is_shown() -> None:
    error = RuntimeError("Traceback (most recent call last):\n  File x\nValueError: seven\n\n")
    assert events.last_line(error) == "ValueError: seven"
    assert events.last_line(RuntimeError()) == "RuntimeError"


def new_desk(task: str = "first") -> Desk:
    desk = Desk()
    desk.put([task], REPORTER)
    return desk


REPORTER = Reporter(None)


def test_groups_are_counted_and_a_final_error_is_kept() -> None:
    desk = new_desk()
    assert [desk.next("a", -1) for _ in range(2)] == [Turn(0, 0, ["first"], None)] * 2
    error = KdscaleError("a", "b")
    desk.give_up(error)
    desk.give_up(KdscaleError("later", "c"))
    assert [desk.next("b", -1) for _ in range(3)] == [Turn(0, 1, ["first"], error)] * 3
    assert desk.starts() == 2


def test_a_task_is_through_when_all_ranks_of_one_group_are() -> None:
    desk = new_desk()
    desk.next("a", -1)
    desk.through("a", 0, 2)
    desk.through("b", 1, 2)
    assert not desk.is_through()
    desk.through("b", 1, 2)
    assert not desk.is_through()
    desk.through("b", 0, 2)
    assert desk.is_through()


def test_a_rank_waits_for_the_next_task_and_counts_anew() -> None:
    desk = new_desk()
    desk.next("a", -1)
    assert desk.next("a", 0) == "wait"
    desk.give_up(KdscaleError("a", "b"))
    desk.through("a", 0, 1)
    assert desk.next("late", -1) == "wait", "nothing is left of it to do"
    desk.put(["second"], REPORTER)
    assert not desk.is_through()
    assert desk.next("b", -1) == Turn(1, 0, ["second"], None)
    assert desk.next("a", 0) == Turn(1, 1, ["second"], None)
    desk.close()
    assert desk.next("a", 1) == "end"


def test_outside_a_group_there_is_one_rank(capsys: pytest.CaptureFixture[str]) -> None:
    alone = current_worker()
    assert (alone.rank, alone.world_size, alone.device.type) == (0, 1, "cpu")
    assert alone.broadcast("x") == "x"
    alone.say("hello")
    assert capsys.readouterr().out.startswith("rank 0 of 1 (pid ")


def test_a_cluster_that_grows_is_not_called_too_small(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("KDSCALE_AUTOSCALES", raising=False)
    assert not group._autoscales()
    monkeypatch.setenv("KDSCALE_AUTOSCALES", "1")
    assert group._autoscales()
    monkeypatch.delenv("KDSCALE_AUTOSCALES")
    (tmp_path / "ray_bootstrap_config.yaml").touch()
    assert group._autoscales()
