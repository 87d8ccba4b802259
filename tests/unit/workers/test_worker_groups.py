"""What groups find at their desk, and what a failed stage tells its user."""

from pathlib import Path

import pytest
from ray.train.v2.api.exceptions import WorkerGroupError

from kdscale.distributed.rank import current_rank
from kdscale.errors import KdscaleError, StoreError
from kdscale.workers import group
from kdscale.workers.progress import Reporter
from kdscale.workers.task_queue import Desk, Turn


def test_a_kdscale_error_of_a_rank_is_what_the_user_reads() -> None:
    ours = KdscaleError("The cache is damaged.", "Repair it.")
    assert group._failed(ours, "distill") is ours


def test_other_failures_name_the_stage_and_say_how_to_go_on() -> None:
    other = group._failed(TypeError("no such argument"), "cache")
    assert "'cache' failed on its workers: TypeError: no such argument" in other.problem
    assert "finished work is kept" in other.fix


def test_a_rank_without_its_store_is_told_as_any_command_without_it() -> None:
    gone = StoreError("get s3://b/k: 403", "s3://b/k cannot be read: denied.", "denied", "Log in.")
    for error in (gone, WorkerGroupError("Traceback", {1: gone})):
        told = group._failed(error, "cache")
        assert told.problem.endswith("failed on its workers: s3://b/k cannot be read: denied.")
        assert told.fix == "Log in. Then run the same command again: finished work is kept."
    full = group._failed(OSError(28, "No space left on device", "/tmp/x"), "cache")
    assert "/tmp/x cannot be used: the disk is full" in full.problem


def new_desk(task: str = "first") -> Desk:
    desk = Desk()
    desk.put([task], REPORTER)
    return desk


REPORTER = Reporter(None)


def test_groups_are_counted() -> None:
    desk = new_desk()
    assert [desk.next("a", -1) for _ in range(2)] == [Turn(0, 0, ["first"])] * 2
    assert [desk.next("b", -1) for _ in range(2)] == [Turn(0, 1, ["first"])] * 2
    assert desk.starts() == 2


def test_after_a_final_error_no_group_tries_again() -> None:
    desk = new_desk()
    desk.next("a", -1)
    assert desk.look() == (False, None)
    error = KdscaleError("a", "b")
    desk.give_up(error)
    desk.give_up(KdscaleError("later", "c"))
    assert desk.look() == (False, error)
    assert desk.next("b", -1) == "end"


def test_a_task_is_through_when_all_ranks_of_one_group_are() -> None:
    desk = new_desk()
    desk.next("a", -1)
    desk.through("a", 0, 2)
    desk.through("b", 1, 2)
    assert desk.look() == (False, None)
    desk.through("b", 1, 2)
    assert desk.look() == (False, None)
    desk.through("b", 0, 2)
    assert desk.look() == (True, None)


def test_a_rank_waits_for_the_next_task_and_counts_anew() -> None:
    desk = new_desk()
    desk.next("a", -1)
    assert desk.next("a", 0) == "wait"
    desk.through("a", 0, 1)
    assert desk.next("late", -1) == "wait", "nothing is left of it to do"
    desk.put(["second"], REPORTER)
    assert desk.look() == (False, None)
    assert desk.next("b", -1) == Turn(1, 0, ["second"])
    assert desk.next("a", 0) == Turn(1, 1, ["second"])
    desk.close()
    assert desk.next("a", 1) == "end"


def test_outside_a_group_there_is_one_rank(capsys: pytest.CaptureFixture[str]) -> None:
    alone = current_rank()
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
