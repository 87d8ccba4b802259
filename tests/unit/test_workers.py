"""What a failed stage tells its user."""

import pytest

from kdscale import workers
from kdscale.attempts import Attempts
from kdscale.errors import KdscaleError


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
    assert workers._readable(error, "distill") is ours


def test_other_failures_name_the_stage_and_say_how_to_go_on() -> None:
    error = workers._readable(GroupError({0: ConnectionError("peer lost")}), "cache")
    assert isinstance(error, KdscaleError)
    assert "'cache'" in error.problem
    assert "finished work is kept" in error.fix


def test_the_last_line_of_a_traceback_is_shown() -> None:
    error = RuntimeError("Traceback (most recent call last):\n  File x\nValueError: seven\n\n")
    assert workers._last_line(error) == "ValueError: seven"
    assert workers._last_line(RuntimeError()) == "RuntimeError"


def test_attempts_are_counted_and_a_final_error_is_kept() -> None:
    attempts = Attempts()
    assert [attempts.start(rank) for rank in (0, 1)] == [(0, None), (0, None)]
    error = KdscaleError("a", "b")
    attempts.give_up(error)
    attempts.give_up(KdscaleError("later", "c"))
    assert attempts.start(0) == (1, error)


def test_outside_a_group_there_is_one_rank(capsys: pytest.CaptureFixture[str]) -> None:
    worker = workers.current_worker()
    assert (worker.rank, worker.world_size, worker.device.type) == (0, 1, "cpu")
    assert worker.broadcast("x") == "x"
    worker.say("hello")
    assert capsys.readouterr().out.startswith("rank 0 of 1 (pid ")
