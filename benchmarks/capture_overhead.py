"""What capture costs: tokens/s of kdscale filling a cache in S3, over those of the bare forward.

    python benchmarks/capture_overhead.py [--quick] [--assets FOLDER] [--turns 5]

SmolLM2-135M-Instruct over BBC articles in rows of 512 tokens, in real Ray Train worker groups: one
worker with two threads, and two workers with one. Each group loads the teacher once, then takes
turns on the same rows in the same batches: the forward alone, and all that the capture stage does
after loading (encoding, packing, upload to a real S3 server on this machine, which takes its share
of the same cores, commits, metrics, manifest). Ratios are of neighbouring arms, and their median is
the value.

The last line is one JSON object, also kept in results/capture_overhead.json. --quick takes a few
rows and the warm-up alone, and keeps nothing.
"""

import json
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import typer

ROOT = Path(__file__).parents[1]
# Of a script only its own folder is on the path.
sys.path.insert(0, str(ROOT))

from kdscale.config import RunConfig  # noqa: E402
from kdscale.config.training import WorkersConfig  # noqa: E402
from kdscale.data.rows.prepared import Prepared, open_prepared  # noqa: E402
from kdscale.distributed.rank import Rank, current_rank  # noqa: E402
from kdscale.models.forward import compute_logits, row_tensors  # noqa: E402
from kdscale.models.sharded import load_teacher  # noqa: E402
from kdscale.run.artifacts import RunArtifacts  # noqa: E402
from kdscale.run.cache_stage import own_store, plan_capture  # noqa: E402  after the path is set
from kdscale.run.pipeline import run_pipeline  # noqa: E402
from kdscale.teacher.capture import CaptureJob, fill_cache  # noqa: E402
from kdscale.workers.group import run_workers  # noqa: E402
from kdscale.workers.progress import stage_progress  # noqa: E402
from kdscale.workers.ray_session import ray_session  # noqa: E402
from tests.s3 import S3Server  # noqa: E402

KEPT = ROOT / "benchmarks" / "results" / "capture_overhead.json"
RESULT = "turns.json"
LAYOUTS = (WorkersConfig(count=1, cpus=2), WorkersConfig(count=2, cpus=1))


def main(
    quick: bool = typer.Option(False, help="A few rows, to see that it works."),
    assets: Path = typer.Option(ROOT / "assets", help="Folder that assets.py wrote."),
    turns: int = typer.Option(5, min=1, help="Turns that count, after one to warm up."),
) -> None:
    """Measure both layouts and print the figures."""
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
    found = {
        "benchmark": "capture_overhead",
        "machine": {"cpu": platform.machine(), "cores": os.cpu_count()},
        "versions": {name: version(name) for name in ("kdscale", "torch", "ray", "transformers")},
        "seconds": round(time.perf_counter() - started),
        "rows": measured,
        "goals": [
            {
                "name": "capture_over_forward",
                "value": min(row["capture_over_forward"] for row in measured),
                "goal": ">=0.97",
            }
        ],
    }
    if not quick:
        KEPT.write_text(json.dumps(found, indent=1) + "\n")
    print(json.dumps(found))


def make_config(assets: Path, output: str, rows: int) -> RunConfig:
    """A run whose teacher is a whole copy on every worker, with four shards to capture."""
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
            "teacher": {"load": str(assets / "smollm2-135m-instruct")},
            "cache": {
                "rows": rows,
                "sequences_per_shard": rows // 4,
                "sequences_per_chunk": max(1, rows // 8),
                "capture": {"zero": {"stage": 0}, "micro_batch_size": min(4, rows // 4)},
            },
            # Not run: a run's config has to name a student.
            "distill": {
                "student": {"teacher_layers": [0]},
                "training": {"steps": 1, "global_batch_size": 1},
            },
            "tracking": {"wandb": "disabled"},
        }
    )


def measure(job: CaptureJob, layout: WorkersConfig, turns: int) -> dict[str, Any]:
    """The arms of one layout, in one worker group."""
    name = f"{layout.count} workers x {layout.cpus:g} threads"
    with stage_progress(name) as progress:
        run_workers(TurnsJob(job, turns), layout, progress)
    found = json.loads(job.output.get(RESULT))
    metrics = json.loads(job.output.get("metrics/cache.jsonl").splitlines()[-1])
    tokens = job.plan.rows * job.config.data.seq_len
    seconds = {arm: statistics.median(turn[arm] for turn in found) for arm in found[0]}
    ratios = [turn["forward"] / turn["capture"] for turn in found]
    return {
        "layout": name,
        "tokens_a_turn": tokens,
        "turns": len(found),
        "forward_tokens_per_second": tokens / seconds["forward"],
        "capture_tokens_per_second": tokens / seconds["capture"],
        "capture_over_forward": statistics.median(ratios),
        "ratio_least": min(ratios),
        "ratio_most": max(ratios),
        "last_capture": {k: v for k, v in metrics.items() if k not in ("step", "time")},
    }


@dataclass(frozen=True)
class TurnsJob:
    """Bare forwards and captures in turn, on workers."""

    capture: CaptureJob
    turns: int

    def run(self) -> None:
        """Write the seconds of each variant, turn by turn, the warm-up left out."""
        take_turns(self)


def take_turns(job: TurnsJob) -> None:
    """Write the seconds of each variant, turn by turn, the warm-up left out."""
    spec = job.capture
    worker = current_rank()
    prepared = open_prepared(spec.prepared)
    model = load_teacher(spec.teacher.local(), worker, spec.config.cache.capture.zero)
    turns = []
    for turn in range(job.turns + 1):
        cache = spec.output.child(f"turns/{worker.world_size}-{turn}")
        fresh = replace(spec, cache=cache, put_if_absent=cache.put_if_absent)
        if worker.rank == 0:
            for key in spec.cache.list(""):
                cache.put(key, spec.cache.get(key))
        arms = [
            ("forward", partial(only_forward, spec, worker, model, prepared)),
            ("capture", partial(fill_cache, fresh, worker, model, prepared)),
        ]
        # Who comes first changes, so that a machine that slows down or warms up favours neither.
        order = reversed(arms) if turn % 2 else arms
        turns.append({name: seconds_of(arm, worker) for name, arm in order})
        worker.say(f"turn {turn}: {turns[-1]}")
    if worker.rank == 0:
        spec.output.put(RESULT, json.dumps(turns[1:] or turns).encode())


def seconds_of(arm: Callable[[], None], worker: Rank) -> float:
    """From when all ranks are ready until all are through."""
    worker.barrier()
    started = time.perf_counter()
    arm()
    worker.barrier()
    return time.perf_counter() - started


@torch.no_grad()
def only_forward(
    spec: CaptureJob, worker: Rank, model: torch.nn.Module, prepared: Prepared
) -> None:
    """The teacher over this rank's share of the shards, in the batches of a capture."""
    table, size = prepared.split("train"), spec.config.cache.capture.micro_batch_size
    for shard in spec.plan.shards[worker.rank :: worker.world_size]:
        for start in range(shard.start, shard.stop, size):
            rows = table.take(spec.selected[start : min(start + size, shard.stop)])
            ids, segments, _, _ = row_tensors(rows, worker.device)
            compute_logits(model, ids, segments, prepared.vocab_size)


if __name__ == "__main__":
    typer.run(main)
