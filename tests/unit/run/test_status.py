"""The status of a run, from its store alone: alive, lost and ended."""

import json
from pathlib import Path
from typing import Any

import pytest

from kdscale.cache.format.records import Generation, PlanRecord, record_bytes
from kdscale.cache.spec import FORMAT
from kdscale.errors import KdscaleError
from kdscale.run.finished_run import CONFIG_KEY
from kdscale.run.progress_file import (
    LOST_SECONDS,
    PROGRESS_KEY,
    Driver,
    ProgressRecord,
    RecordedProgress,
)
from kdscale.run.stage_names import STAGES
from kdscale.run.status import StageStatus, run_status
from kdscale.store import Store, open_store
from tests.runs import tiny_config

HEARD = 1000.0


@pytest.fixture
def store(tmp_path: Path) -> Store:
    store = open_store(str(tmp_path / "run"))
    store.put(CONFIG_KEY, json.dumps(tiny_config(tmp_path, store.url)).encode())
    return store


def write_record(store: Store, **states: str) -> None:
    stages = {
        name: {"state": state, "fingerprint": f"f-{name}", "seconds": 5.0, "attempts": 1}
        for name, state in states.items()
    }
    store.put("run.json", json.dumps({"name": "tiny", "stages": stages}).encode())


def write_progress(store: Store, state: str = "running", **stages: dict[str, Any]) -> None:
    driver = Driver(
        host="h",
        pid=1,
        job=None,
        started=900.0,
        heard=HEARD,
        state=state,  # type: ignore[arg-type]
    )
    recorded = {
        name: RecordedProgress(**{"fingerprint": f"f-{name}", "started": 990.0, **fields})
        for name, fields in stages.items()
    }
    record = ProgressRecord(drivers=(driver,), stages=recorded)
    store.put(PROGRESS_KEY, record.model_dump_json().encode())


def stage(store: Store, name: str, now: float = HEARD) -> StageStatus:
    return next(each for each in run_status(store, now).stages if each.name == name)


def test_no_run_is_an_error_with_a_fix(tmp_path: Path) -> None:
    with pytest.raises(KdscaleError, match="not the output of a run"):
        run_status(open_store(str(tmp_path)))


@pytest.mark.parametrize(
    ("silence", "state"),
    [(0.0, "running"), (LOST_SECONDS - 0.5, "running"), (LOST_SECONDS, "lost"), (-9.0, "running")],
)
def test_a_silent_driver_is_lost(store: Store, silence: float, state: str) -> None:
    write_record(store, prepare="complete", teacher="running")
    write_progress(store, teacher={})
    found = run_status(store, HEARD + silence)
    assert found.state == state
    assert found.heard_seconds_ago == max(0.0, silence)
    assert [each.state for each in found.stages[:3]] == ["complete", state, "waiting"]


def test_how_a_run_ended(store: Store) -> None:
    write_record(store, prepare="complete", teacher="failed")
    write_progress(store, state="failed")
    assert run_status(store, HEARD + 1e6).state == "failed"
    write_progress(store, state="stopped")
    assert run_status(store, HEARD + 1e6).state == "stopped"
    write_record(store, prepare="complete")
    write_progress(store, state="complete")
    assert run_status(store, HEARD).state == "idle"
    write_record(store, **dict.fromkeys(STAGES, "complete"))
    assert run_status(store, HEARD).state == "complete"


def test_a_run_without_progress_still_has_its_record(store: Store) -> None:
    write_record(store, **dict.fromkeys(STAGES, "complete"))
    found = run_status(store)
    assert (found.state, found.driver, found.heard_seconds_ago) == ("complete", None, None)
    json.dumps(found.as_dict())


def test_seconds_of_a_running_stage_count_on(store: Store) -> None:
    write_record(store, teacher="running")
    write_progress(store, teacher={"done": 3, "total": 9, "seconds_left": 20.0})
    found = stage(store, "teacher")
    assert (found.seconds, found.done, found.total, found.seconds_left) == (15.0, 3, 9, 20.0)
    # The progress of another config's stage is not this one's.
    write_progress(store, teacher={"done": 3, "fingerprint": "other"})
    assert (stage(store, "teacher").seconds, stage(store, "teacher").done) == (5.0, 0)


def test_shards_are_counted_from_their_commits(store: Store) -> None:
    write_record(store, cache="running")
    write_progress(store, cache={"done": 500, "total": 640})
    assert stage(store, "cache").shards_committed is None
    cache = store.child("cache/f-cache")
    generation = Generation(
        first_shard=0,
        first_row=0,
        rows=640,
        sequences_per_shard=16,
        sequences_per_chunk=8,
        data="d",
        request="0" * 32,
        prior=None,
    )
    plan = PlanRecord(format=FORMAT, identity={}, generation=generation, created="2026")
    cache.put("plans/0000.json", record_bytes(plan))
    for shard in (0, 7):
        cache.put(f"commits/{shard:06d}.json", b"{}")
    assert stage(store, "cache").shards_committed == 2
    assert stage(store, "cache").shards_planned == 40


def test_losses_come_from_the_end_of_the_metrics(store: Store) -> None:
    write_record(store, distill="running")
    write_progress(store, distill={})
    assert stage(store, "distill").losses == ()
    lines = [{"step": n, "train/loss": n / 2, "train/kl": 0.5} for n in range(1, 3000)]
    lines[-2]["validation/loss"] = 4.0
    lines[-1]["train/kl"] = None
    text = "".join(json.dumps(line) + "\n" for line in lines)
    assert len(text) > 2 * 64 * 1024
    store.put("metrics/distill.jsonl", (text + '{"step": 3000, "train/lo').encode())
    (losses,) = stage(store, "distill").losses
    assert (losses.training, losses.step) == ("distill", 2999)
    assert losses.values == {"train/loss": 1499.5, "train/kl": None, "validation/loss": 4.0}
