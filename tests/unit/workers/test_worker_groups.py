"""The text of a failed stage, a rank outside of a group, and clusters that grow."""

from pathlib import Path

import pytest
from ray.train.v2.api.exceptions import WorkerGroupError

from kdscale.distributed.rank import current_rank
from kdscale.errors import KdscaleError, StoreError, last_line
from kdscale.workers import group


def test_a_kdscale_error_of_a_rank_is_what_the_user_reads() -> None:
    ours = KdscaleError("The cache is damaged.", "Repair it.")
    assert group._stage_error(ours, "distill") is ours


def test_other_failures_name_the_stage_and_a_fix() -> None:
    other = group._stage_error(TypeError("no such argument"), "cache")
    assert "'cache' failed on its workers: TypeError: no such argument" in other.problem
    assert "finished work is kept" in other.fix


def test_a_store_that_fails_has_the_text_of_any_command() -> None:
    gone = StoreError("get s3://b/k: 403", "s3://b/k cannot be read: denied.", "denied", "Log in.")
    for error in (gone, WorkerGroupError("Traceback", {1: gone})):
        found = group._stage_error(error, "cache")
        assert found.problem.endswith("failed on its workers: s3://b/k cannot be read: denied.")
        assert found.fix == "Log in. Then run the same command again: finished work is kept."
    full = group._stage_error(OSError(28, "No space left on device", "/tmp/x"), "cache")
    assert "/tmp/x cannot be used: the disk is full" in full.problem


def test_the_last_line_of_a_traceback_is_shown() -> None:
    error = RuntimeError("Traceback (most recent call last):\n  File x\nValueError: seven\n\n")
    assert last_line(error) == "ValueError: seven"
    assert last_line(RuntimeError()) == "RuntimeError"


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
