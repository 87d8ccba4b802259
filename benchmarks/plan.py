"""Accuracy of `kdscale plan`: predicted over measured time, memory and bytes of real runs.

    python benchmarks/plan.py [--quick] [--keep FOLDER]

Each configuration (plan_configs.py) is calibrated once its teacher exists (`kdscale plan
--calibrate`, in a worker group started for it), then run: real Ray workers, real files. They share
one corpus, and those with the same teacher share its stage. Measured: a stage's seconds from
run.json, the peak memory of a worker from its metrics, the cache's bytes from its manifest.
Predicted: the plan with that calibration. A benchmark that was interrupted resumes with the next
configuration.

The last line is one JSON object, also kept in results/plan.json. --quick runs the first
configuration alone, and keeps nothing.
"""

import json
import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import typer

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.common import ROOT, Keep, Quick, Row, goal, log, report
from benchmarks.plan_configs import CONFIGURATIONS
from kdscale.cache.maintain.inspect import inspect
from kdscale.config import RunConfig
from kdscale.plan.calibrate import calibrate
from kdscale.plan.calibration import KEY, find
from kdscale.plan.hardware import this_machine
from kdscale.plan.inputs import read_inputs
from kdscale.plan.plan import make_plan
from kdscale.plan.timing import group_start, start_up
from kdscale.run.artifacts import RunArtifacts, resolve_paths
from kdscale.run.finished_run import RECORD_KEY
from kdscale.run.pipeline import run_pipeline
from kdscale.store import Store, open_store
from kdscale.workers.ray_session import ray_session
from tests.runs import write_corpus

STAGES = ("teacher", "cache", "distill")
WITHIN = {"seconds": 0.25, "memory": 0.25, "bytes": 0.15}


def run_all(config: RunConfig, known: Path | None) -> None:
    """Make rows and teacher, or copy those of the folder `known`; calibrate, capture and distil."""
    folder = Path(config.output)
    shutil.rmtree(folder, ignore_errors=True)
    if known is not None:
        folder.mkdir(parents=True)
        for part in ("prepared", "teacher"):
            shutil.copytree(known / part, folder / part)
    with ray_session():
        run_pipeline(config, until=STAGES[0])
        calibrate(read_inputs(config, this_machine()))
        run_pipeline(config, start=STAGES[1], until=STAGES[-1])


def is_finished(config: RunConfig) -> bool:
    """Return whether the run is complete and has its calibration."""
    output = open_store(config.output)
    if not (output.exists(RECORD_KEY) and output.exists(KEY)):
        return False
    last = json.loads(output.get(RECORD_KEY))["stages"].get(STAGES[-1], {})
    return bool(last.get("state") == "complete")


def peak_memory(output: Store, stage: str) -> float | None:
    """Return the bytes of the worker that logged most, from the stage's metrics."""
    names = {"distill": ("distill", "baseline")}.get(stage, (stage,))
    peaks = []
    for name in names:
        key = f"metrics/{name}.jsonl"
        if output.exists(key):
            lines = map(json.loads, output.get(key).decode().splitlines())
            peaks += [line["memory_gib"] * 2**30 for line in lines if "memory_gib" in line]
    return max(peaks) if peaks else None


def compared(name: str, config: RunConfig, stages: Sequence[str]) -> list[Row]:
    """Return a row for each figure of a finished run's `stages`: predicted, measured, ratio."""
    output = open_store(config.output)
    inputs = read_inputs(config, this_machine())
    plan = make_plan(inputs.with_measured(find(output, "cpu")))
    record = json.loads(output.get(RECORD_KEY))["stages"]
    rows = []

    def add(stage: str, figure: str, predicted: float, measured: float | None) -> None:
        if measured:
            row = {"configuration": name, "stage": stage, "figure": figure}
            row |= {"predicted": predicted, "measured": measured}
            rows.append(row | {"ratio": predicted / measured})

    for stage in plan.stages:
        if stage.name in stages:
            assert stage.memory is not None
            # The calibration came between teacher and capture, so that workers were started anew.
            start = group_start(plan.inputs) - start_up("cache", plan.inputs)
            more = start if stage.name == "cache" else 0.0
            seconds = stage.seconds.total + more
            add(stage.name, "seconds", seconds, record[stage.name]["seconds"])
            add(stage.name, "memory", stage.memory.total, peak_memory(output, stage.name))
    facts = inspect(RunArtifacts(config).cache_stores[0][0])
    add("cache", "bytes", plan.caches[0].stored, facts["bytes"])
    decoded = facts["payload_bytes_per_position"]
    add("cache", "bytes decoded", plan.caches[0].in_memory_position, decoded)
    return rows


def goals(rows: list[Row]) -> list[Row]:
    """Return the share of predictions within the bound of each figure, and the worst of them."""
    found = []
    for figure, bound in WITHIN.items():
        errors = [abs(row["ratio"] - 1) for row in rows if row["figure"] == figure]
        if errors:
            within = sum(error <= bound for error in errors) / len(errors)
            found.append(goal(f"{figure}_within_{bound:.0%}", within, "1"))
            found.append(goal(f"{figure}_worst_error", max(errors), f"<={bound}"))
    return found


def main(quick: Quick = False, keep_in: Keep = ROOT / "runs" / "plan") -> None:
    """Run every configuration that is not finished in the folder."""
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as scratch:
        base = Path(scratch) if quick else keep_in
        corpus = base / "corpus" if (base / "corpus").exists() else write_corpus(base / "corpus")
        for name, make in list(CONFIGURATIONS.items())[: 1 if quick else None]:
            tree, teacher_of = make(corpus, base / name)
            config = resolve_paths(RunConfig.model_validate(tree))
            if not is_finished(config):
                run_all(config, base / teacher_of if teacher_of else None)
            for row in compared(name, config, STAGES[1:] if teacher_of else STAGES):
                log(row)
                rows.append(row)
    report("plan", rows, goals(rows), keep=not quick)


if __name__ == "__main__":
    typer.run(main)
