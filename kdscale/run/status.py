"""Status of a run, from its store alone: no cluster is asked, and nothing is written.

`run.json` says which stages are complete, `progress.json` which driver is at work and how far the
present stage is, `commits/` which shards count, the ends of `metrics/*.jsonl` the last losses.
"""

import json
import time
from dataclasses import asdict, dataclass, fields
from typing import Any

from kdscale.cache.format.records import PlanRecord, read_record
from kdscale.run.expectation import Expectation, read_expectation
from kdscale.run.finished_run import FinishedRun
from kdscale.run.progress_file import LOST_SECONDS, Driver, ProgressRecord, read_progress
from kdscale.run.stage_names import CURVES, STAGES
from kdscale.store import Store, explained, open_store
from kdscale.workers.progress import StageProgress

_TAIL_BYTES = 64 * 1024
_LOSSES = ("train/loss", "train/ce_loss", "train/kl", "validation/loss")


@dataclass(frozen=True)
class Losses:
    """The losses that a training logged last: nats a token, each from the newest line with it."""

    training: str
    step: int
    values: dict[str, float | None]


@dataclass(frozen=True, kw_only=True)
class StageStatus(StageProgress):
    """A stage: its state, its progress, its shards and losses."""

    name: str
    state: str
    seconds: float = 0.0
    """Wall seconds over all attempts at the present fingerprint."""

    attempts: int = 0
    """Number of drivers that began with it."""

    shards_committed: int | None = None
    """Shards of the cache, counted from its commits; None for other stages."""

    shards_planned: int | None = None
    losses: tuple[Losses, ...] = ()


@dataclass(frozen=True)
class RunStatus:
    """Status of a run."""

    name: str
    output: str
    state: str
    """running; complete; failed; stopped: as it was asked to; lost: the driver died without writing
    its end; idle: no driver is at work, and stages are left."""

    heard_seconds_ago: float | None
    driver: Driver | None
    earlier_drivers: tuple[Driver, ...]
    stages: tuple[StageStatus, ...] = ()
    expected: Expectation | None = None
    """Figures of the plan; None without one."""

    seconds_left: float | None = None
    """Seconds of the stages that run and are to come; None where those of one are unknown."""

    dollars: float | None = None
    """The devices' price so far; None where it is not known."""

    def as_dict(self) -> dict[str, Any]:
        """Return the status for JSON."""
        return asdict(self) | {
            "driver": None if self.driver is None else self.driver.model_dump(),
            "earlier_drivers": [driver.model_dump() for driver in self.earlier_drivers],
            "expected": None if self.expected is None else self.expected.model_dump(),
        }


@explained()
def run_status(
    output: Store, now: float | None = None, progress: ProgressRecord | None = None
) -> RunStatus:
    """Return the status of the run in `output` at `now` (Unix seconds; the present by default).

    progress: that of the run's own driver, which knows more than it has written. Ages compare the
    driver's clock with this machine's. Raises KdscaleError if there is no run.
    """
    progress = progress or read_progress(output)
    record = FinishedRun(output).record
    progress = progress or ProgressRecord()
    moment = time.time() if now is None else now
    driver = progress.drivers[-1] if progress.drivers else None
    age = None if driver is None else max(0.0, moment - driver.heard)
    state = _state(driver, age, record["stages"])
    stages = tuple(_stage(output, name, record["stages"], progress, state) for name in STAGES)
    expected = read_expectation(output)
    trainings = 1 + bool(FinishedRun(output).config_tree.get("distill", {}).get("baseline"))
    return RunStatus(
        name=record.get("name", ""),
        output=str(output),
        state=state,
        heard_seconds_ago=age,
        driver=driver,
        earlier_drivers=progress.drivers[:-1],
        stages=stages,
        expected=expected,
        seconds_left=_seconds_left(stages, expected, trainings) if state == "running" else None,
        dollars=_dollars(stages, expected),
    )


def _seconds_left(
    stages: tuple[StageStatus, ...], expected: Expectation | None, trainings: int
) -> float | None:
    """Return the seconds left of all stages: by their pace where they run, else as planned.

    The stage `distill` counts the steps of one training at a time: where the baseline is still to
    come, it takes as long as the student. The report takes seconds, and is not planned.
    """
    planned = {} if expected is None else expected.seconds
    left = 0.0
    for stage in stages:
        if stage.state == "complete":
            continue
        if stage.seconds_left is not None:
            left += stage.seconds_left
            if stage.name == "distill" and stage.note == "student" and stage.done < stage.total:
                each = stage.seconds_left / (stage.total - stage.done) * stage.total
                left += (trainings - 1) * each
        elif stage.name in planned:
            left += max(0.0, planned[stage.name] - stage.seconds)
        elif stage.name != "report":
            return None
    return left


def _dollars(stages: tuple[StageStatus, ...], expected: Expectation | None) -> float | None:
    """Return the price of the devices of the stages so far, on demand; None without a price."""
    if expected is None or not expected.on_demand:
        return None
    hours = sum(stage.seconds * expected.devices.get(stage.name, 1) for stage in stages) / 3600
    return hours * expected.on_demand


def _state(driver: Driver | None, age: float | None, stages: dict[str, Any]) -> str:
    if driver is not None and driver.state == "running":
        return "running" if age is not None and age < LOST_SECONDS else "lost"
    if all(stages.get(name, {}).get("state") == "complete" for name in STAGES):
        return "complete"
    return driver.state if driver is not None and driver.state in ("failed", "stopped") else "idle"


def _stage(
    output: Store, name: str, stages: dict[str, Any], progress: ProgressRecord, run_state: str
) -> StageStatus:
    entry, recorded = stages.get(name), progress.stages.get(name)
    if entry is None:
        return StageStatus(name=name, state="waiting")
    running = entry["state"] == "running"
    state, seconds = run_state if running else entry["state"], entry["seconds"]
    if recorded is None or recorded.fingerprint != entry["fingerprint"]:
        return StageStatus(name=name, state=state, seconds=seconds, attempts=entry["attempts"])
    if running:
        # The record has the seconds of ended attempts only.
        seconds += max(0.0, progress.drivers[-1].heard - recorded.started)
    committed, planned = _shards(output, entry["fingerprint"]) if name == "cache" else (None, None)
    how_far = {field.name: getattr(recorded, field.name) for field in fields(StageProgress)}
    if not running:
        how_far["seconds_left"] = None
    return StageStatus(
        **how_far,
        name=name,
        state=state,
        seconds=round(seconds, 1),
        attempts=entry["attempts"],
        shards_committed=committed,
        shards_planned=planned,
        losses=tuple(found for each in CURVES.get(name, ()) if (found := _losses(output, each))),
    )


def _shards(output: Store, fingerprint: str) -> tuple[int | None, int | None]:
    """Return how many shards of the cache that the run fills are committed and planned.

    Those of earlier runs count if it appends to a cache; None each if it fills none.
    """
    elsewhere = FinishedRun(output).config_tree.get("cache", {}).get("append_to")
    cache = open_store(elsewhere) if elsewhere else output.child(f"cache/{fingerprint}")
    plans = [read_record(PlanRecord, cache, key) for key in cache.list("plans/")]
    if not plans:
        return None, None
    return len(cache.list("commits/")), sum(len(plan.generation.shards) for plan in plans)


def _losses(output: Store, training: str) -> Losses | None:
    """Return the losses at the end of a metrics file, None if there are none."""
    lines = [json.loads(line) for line in _tail(output, f"metrics/{training}.jsonl")]
    newest = {
        name: next((line[name] for line in reversed(lines) if name in line), None)
        for name in _LOSSES
        if any(name in line for line in lines)
    }
    return Losses(training, lines[-1]["step"], newest) if newest else None


def _tail(output: Store, key: str) -> list[str]:
    """Return the last whole lines of an object that may grow, or be replaced by a shorter one."""
    try:
        size = output.size(key)
        start = max(0, size - _TAIL_BYTES)
        text = output.get_range(key, start, size - start) if size else b""
    except FileNotFoundError:
        return []
    lines = text.decode(errors="replace").split("\n")
    # Before the first line end a line may be cut, and after the last one it may be half written.
    return [line for line in lines[1 if start else 0 : -1] if line]
