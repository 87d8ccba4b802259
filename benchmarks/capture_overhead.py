"""Overhead of capture: tokens/s of filling a cache in S3, over those of the bare forward.

    python benchmarks/capture_overhead.py [--quick] [--assets FOLDER] [--turns 5]

SmolLM2-135M-Instruct over BBC articles in rows of 512 tokens, in real Ray Train worker groups: one
worker with two threads, and two workers with one. Each group loads the teacher once, then takes
turns on the same rows in the same batches: the forward alone, and all that the capture stage does
after loading (encoding, packing, upload to a real S3 server on this machine, which takes its share
of the same cores, commits, metrics, manifest). The value is the median of the ratios of each turn.

The last line is one JSON object, also kept in results/capture_overhead.json. --quick takes a few
rows and the warm-up alone, and keeps nothing.
"""

import json
import os
import statistics
import sys
import tempfile
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import typer

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks import capture_work
from benchmarks.common import ASSETS, TEACHER, Assets, Quick, Row, Turns, goal, ratios, report
from kdscale.config import RunConfig
from kdscale.config.training import WorkersConfig
from kdscale.data.rows.prepared import open_prepared
from kdscale.distributed.rank import current_rank
from kdscale.run.artifacts import RunArtifacts
from kdscale.run.pipeline import run_pipeline
from kdscale.run.stages.cache import own_store, plan_capture
from kdscale.teacher.capture import CaptureJob
from kdscale.teacher.states import place_captured
from kdscale.workers.group import run_workers
from kdscale.workers.progress import stage_progress
from kdscale.workers.ray_session import ray_session
from tests.s3 import S3Server

RESULT = "turns.json"
LAYOUTS = (WorkersConfig(count=1, cpus=2), WorkersConfig(count=2, cpus=1))


def main(quick: Quick = False, assets: Assets = ASSETS, turns: Turns = 5) -> None:
    """Measure both layouts, print and keep."""
    started = time.perf_counter()
    rows, turns = (4, 0) if quick else (32, turns)
    with tempfile.TemporaryDirectory() as scratch, S3Server(Path(scratch) / "s3") as server:
        os.environ.update(server.env)
        with ray_session():
            config = make_config(assets, f"{server.url}/overhead", rows)
            for stage in ("prepare", "teacher"):
                run_pipeline(config, only=stage)
            run = RunArtifacts(config)
            job = plan_capture(run, own_store(run).put_if_absent)
            measured = [measure(job, layout, turns) for layout in LAYOUTS]
    least = min(row["capture_over_forward"] for row in measured)
    report(
        "capture_overhead",
        measured,
        [goal("capture_over_forward", least, ">=0.97")],
        keep=not quick,
        seconds=round(time.perf_counter() - started),
    )


def make_config(assets: Path, output: str, rows: int) -> RunConfig:
    """Return a run whose teacher is a whole copy on every worker, with four shards to capture."""
    return RunConfig.model_validate(
        {
            "name": "capture-overhead",
            "output": output,
            "data": {
                "train": {"kind": "jsonl", "path": str(assets / "bbc" / "train.jsonl")},
                "tokenizer": {"kind": "teacher"},
                "seq_len": 512,
                "evaluation_sequences": 4,
            },
            "teacher": {"load": str(assets / TEACHER)},
            "cache": {
                "sequences": rows,
                "sequences_per_shard": rows // 4,
                "sequences_per_chunk": max(1, rows // 8),
                "capture": {"teacher_sharding": "none", "micro_batch_size": min(4, rows // 4)},
            },
            # Not run, but required in a config.
            "distill": {
                "student": {"teacher_layers": [0]},
                "training": {"steps": 1, "global_batch_size": 1},
            },
            "tracking": {"wandb": "disabled"},
        }
    )


def measure(job: CaptureJob, layout: WorkersConfig, turns: int) -> Row:
    """Return the row of one layout, measured in one worker group."""
    name = f"{layout.count} workers x {layout.cpus:g} threads"
    with stage_progress(name) as progress:
        run_workers(TurnsJob(job, turns), layout, progress)
    found = json.loads(job.output.get(RESULT))
    metrics = json.loads(job.output.get("metrics/cache.jsonl").splitlines()[-1])
    tokens = job.plan.rows * job.config.data.seq_len
    seconds = {work: statistics.median(turn[work] for turn in found) for work in found[0]}
    shares = ratios(found, "forward", "capture")
    return {
        "layout": name,
        "tokens_a_turn": tokens,
        "turns": len(found),
        "forward_tokens_per_second": tokens / seconds["forward"],
        "capture_tokens_per_second": tokens / seconds["capture"],
        "capture_over_forward": statistics.median(shares),
        "ratio_least": min(shares),
        "ratio_most": max(shares),
        "last_capture": {k: v for k, v in metrics.items() if k not in ("step", "time")},
    }


@dataclass(frozen=True)
class TurnsJob:
    """Job of a worker: bare forwards and captures, turn by turn."""

    capture: CaptureJob
    turns: int

    def run(self) -> None:
        """Write the seconds of both kinds of work in each turn.

        The first turn warms up. The order changes, so that a machine that slows down favours none.
        """
        spec, worker = self.capture, current_rank()
        prepared = open_prepared(spec.prepared)
        zero = spec.config.cache.capture.zero
        teacher = place_captured(spec.load, worker, zero, prepared, spec.group(worker))
        arguments = (spec, worker, teacher, prepared)
        turns = []
        for turn in range(self.turns + 1):
            folder = f"turns/{worker.world_size}-{turn}"
            works = [
                ("forward", partial(capture_work.forward, *arguments)),
                ("capture", partial(capture_work.capture, *arguments, folder)),
            ]
            order = reversed(works) if turn % 2 else works
            turns.append({name: capture_work.seconds_of(work, worker) for name, work in order})
            worker.say(f"turn {turn}: {turns[-1]}")
        if worker.rank == 0:
            spec.output.put(RESULT, json.dumps(turns[1:] or turns).encode())


if __name__ == "__main__":
    typer.run(main)
