"""What a second worker brings to capture and to distillation, and what it costs to start a stage.

    python benchmarks/scaling.py [--quick] [--turns 5] [--starts 3]

**Scaling.** One worker group of two workers with a core each. Arms take turns on the same work: one
rank does all of it while the other waits at a barrier, or both share it as the stages do. Forwards
alone are there to show what the machine gives a second core at most. Efficiency is the time of one
over twice the time of both, as a median of the turns.

**Starting.** A worker group that does nothing but note the time: when its processes began, when the
loop was entered, when DeepSpeed was imported, a sharded model was there, and its first batch was
through. With and without what kdscale.warm does beforehand, in turns.

The last line is one JSON object, also kept in results/scaling.json; --quick takes one turn each and
keeps nothing.
"""

import json
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from typing import Any

import torch
import typer

ROOT = Path(__file__).parents[1]
# Of a script only its own folder is on the path.
sys.path.insert(0, str(ROOT))

from kdscale.cache.read.reader import CacheReader  # noqa: E402  after the path is set
from kdscale.cache_stage import own_store, plan_capture  # noqa: E402
from kdscale.config import RunConfig, load_config  # noqa: E402
from kdscale.config.training import WorkersConfig  # noqa: E402
from kdscale.curriculum.sampler import CurriculumSampler  # noqa: E402
from kdscale.data.prepared import Prepared, open_prepared  # noqa: E402
from kdscale.models.build import build_model, make_config  # noqa: E402
from kdscale.models.forward import compute_logits, row_tensors  # noqa: E402
from kdscale.models.head import TrainedModel  # noqa: E402
from kdscale.models.sharded import load_teacher  # noqa: E402
from kdscale.pipeline import run_pipeline  # noqa: E402
from kdscale.progress import stage_progress  # noqa: E402
from kdscale.ray_session import ray_session  # noqa: E402
from kdscale.run import Run  # noqa: E402
from kdscale.student.objective import DistillationLoss  # noqa: E402
from kdscale.student.steps import read_steps  # noqa: E402
from kdscale.teacher.capture import CaptureJob, fill_cache  # noqa: E402
from kdscale.train.backend import Backend, make_backend  # noqa: E402
from kdscale.workers import Worker, current_worker, run_workers  # noqa: E402

KEPT = ROOT / "benchmarks" / "results" / "scaling.json"
QUICKSTART = ROOT / "jobs" / "configs" / "quickstart.yaml"
RESULT = "turns.json"
LAYOUT = WorkersConfig(count=2, cpus=1)
# Large enough that a step is mostly arithmetic, as with any model that one would distil.
TEACHER = {"hidden_size": 512, "intermediate_size": 1408, "num_hidden_layers": 6}
STUDENT = {"hidden_size": 384, "intermediate_size": 1024, "num_hidden_layers": 4}
ROWS, BATCH_ROWS, STEPS = 64, 32, 2
RATE = 1e-4


def main(
    quick: bool = typer.Option(False, help="One turn, to see that it works."),
    turns: int = typer.Option(5, min=1, help="Turns that count, after one to warm up."),
) -> None:
    """Measure, print and keep."""
    started = time.perf_counter()
    turns = 1 if quick else turns
    with tempfile.TemporaryDirectory() as scratch, ray_session():
        config = make_run(str(Path(scratch) / "run"), turns)
        for stage in ("prepare", "teacher"):
            run_pipeline(config, only=stage)
        run = Run(config)
        job = plan_capture(run, own_store(run).put_if_absent)
        with stage_progress("scaling") as progress:
            run_workers(take_turns, {"capture": job, "turns": turns}, LAYOUT, progress)
        found = json.loads(job.output.get(RESULT))
    rows = [summary(work, found) for work in ("forward", "capture", "distill")]
    result = {
        "benchmark": "scaling",
        "machine": {"cpu": platform.machine(), "cores": os.cpu_count()},
        "versions": {name: version(name) for name in ("kdscale", "torch", "ray", "transformers")},
        "seconds": round(time.perf_counter() - started),
        "rows": rows,
        "goals": [
            {
                "name": f"{row['work']}_efficiency_2_workers",
                "value": row["efficiency"],
                "goal": ">=0.9",
            }
            for row in rows
            if row["work"] != "forward"
        ],
    }
    if not quick:
        KEPT.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result))


def make_run(output: str, turns: int) -> RunConfig:
    """The quickstart's run with larger models, a teacher that is hardly trained, and a cache of few
    rows."""
    changes: dict[str, Any] = {
        "output": output,
        "teacher.training.steps": 1,
        "cache.rows": ROWS,
        "cache.rows_per_unit": ROWS // 8,
        "cache.rows_per_block": ROWS // 8,
        "cache.capture.micro_batch_rows": ROWS // 8,
        "distill.training.steps": STEPS * (turns + 1),
        "distill.training.batch_rows": BATCH_ROWS,
        "distill.training.micro_batch_rows": BATCH_ROWS // 4,
        "tracking.wandb": "disabled",
    }
    for who, sizes in (("teacher.model", TEACHER), ("distill.student.model", STUDENT)):
        changes |= {f"{who}.options.{name}": value for name, value in sizes.items()}
    return load_config(QUICKSTART, [f"{key}={value}" for key, value in changes.items()])


def summary(work: str, turns: list[dict[str, float]]) -> dict[str, Any]:
    """The efficiency of two workers at `work`, of turns of seconds by arm."""
    one, two = f"{work} 1", f"{work} 2"
    efficiencies = [turn[one] / turn[two] / 2 for turn in turns]
    return {
        "work": work,
        "turns": len(turns),
        "seconds_1_worker": statistics.median(turn[one] for turn in turns),
        "seconds_2_workers": statistics.median(turn[two] for turn in turns),
        "efficiency": statistics.median(efficiencies),
        "least": min(efficiencies),
        "most": max(efficiencies),
    }


def take_turns(job: dict[str, Any]) -> None:
    """A worker's loop: writes the seconds of each arm, turn by turn, the warm-up left out."""
    spec: CaptureJob = job["capture"]
    worker = current_worker()
    alone = replace(worker, rank=0, world_size=1)
    prepared = open_prepared(spec.prepared)
    zero = spec.config.cache.capture.zero.model_copy(update={"stage": 0})
    teacher = load_teacher(spec.teacher.local(), worker, zero)
    students: dict[int, Student] = {}
    found = []
    for turn in range(job["turns"] + 1):
        arms: dict[str, Callable[[], None]] = {}
        for who in (alone, worker):
            if who is worker or worker.rank == 0:
                arms |= arms_of(spec, who, teacher, prepared, students, turn)
            else:
                arms |= dict.fromkeys((f"{work} 1" for work in WORKS), _wait)
        found.append({name: seconds_of(arms[name], worker) for name in in_turn(turn)})
        worker.say(f"turn {turn}: {found[-1]}")
    if worker.rank == 0:
        spec.output.put(RESULT, json.dumps(found[1:]).encode())
