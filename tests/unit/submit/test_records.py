"""Records of submitted jobs: found by id and by output, and harmless where they are broken."""

import os
from pathlib import Path

import pytest

from kdscale.submit import records
from kdscale.submit.records import (
    Place,
    Record,
    known_jobs,
    recall,
    recall_run,
    records_folder,
    remember,
    similar_job,
)

THERE = Place("ray", address="http://head:8265")


def keep(job: str, output: str, place: Place = THERE) -> Record:
    """Keep a record that is newer than those before it."""
    record = Record(job, place, output)
    remember(record)
    newest = 10**18 + len(known_jobs())
    os.utime(records_folder() / f"{job}.json", ns=(newest, newest))
    return record


def test_a_job_is_found_by_its_id_and_its_output() -> None:
    first = keep("a-1", "s3://bucket/a")
    second = keep("a-2", "s3://bucket/a", Place("kuberay", kube="/clusters/mine.yaml"))
    assert recall("a-1") == first
    assert recall_run("s3://bucket/a/") == second
    assert recall("a-2.3") == second, "a later attempt, which was submitted on the cluster"
    assert recall("b") is None
    assert recall_run("s3://bucket/b") is None
    assert similar_job("a-11") == "a-1"
    assert known_jobs() == ["a-2", "a-1"]


def test_the_folder_is_the_users_own_for_states(tmp_path: Path) -> None:
    assert records_folder() == tmp_path / "state" / "kdscale" / "jobs"
    assert known_jobs() == []


def test_only_the_newest_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(records, "_MOST_RECORDS", 3)
    for number in range(5):
        keep(f"job-{number}", "out")
    assert known_jobs() == ["job-4", "job-3", "job-2"]


@pytest.mark.parametrize("text", ["", "{}", '{"job": "x", "place": {"where": 1}, "output": ""}'])
def test_a_broken_record_is_none(text: str) -> None:
    good = keep("good", "s3://bucket/run")
    (records_folder() / "x.json").write_text(text)
    assert recall("x") is None
    assert recall_run("s3://bucket/run") == good
