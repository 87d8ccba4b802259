"""What a second worker brings to capture and to distillation, and what it costs to start a stage.

    python benchmarks/scaling.py [--quick] [--turns 5] [--starts 3]

**Scaling.** One worker group of two workers with a core each. Arms take turns on the same work: one
rank does all of it while the other waits at a barrier, or both share it as the stages do. Forwards
alone are there to show what the machine gives a second core at most. Efficiency is the time of one
over twice the time of both, as a median of the turns.

**Starting.** What a stage costs before its first batch is through: a worker group notes the time
and what its processes have computed when the loop is entered (Ray, torch, transformers and the
stages' modules are imported by then), when DeepSpeed is imported, when a sharded teacher is there,
and after its first batch. What the other processes of a start compute (controller, helpers) is read
from the system meanwhile. Seconds of computing say more than wall time on a machine that is busy.

**The next stage.** What a stage costs that goes on with the workers of the one before.

The last line is one JSON object, also kept in results/scaling.json; --quick takes one turn each and
keeps nothing.
"""

import json
import os
import platform
import statistics
import sys
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from typing import Any

import psutil
import torch
import typer

ROOT = Path(__file__).parents[1]
# Of a script only its own folder is on the path.
sys.path.insert(0, str(ROOT))

from kdscale.cache.read.reader import CacheReader  # noqa: E402  after the path is set
from kdscale.config import RunConfig, load_config  # noqa: E402
from kdscale.config.training import WorkersConfig, ZeroConfig  # noqa: E402
from kdscale.curriculum.sampler import CurriculumSampler  # noqa: E402
from kdscale.data.rows.prepared import open_prepared  # noqa: E402
from kdscale.distill.batches import MicroBatch, read_steps  # noqa: E402
from kdscale.distill.objective import DistillationLoss  # noqa: E402
from kdscale.distributed.rank import Rank, current_rank  # noqa: E402
from kdscale.models.forward import compute_logits, row_tensors  # noqa: E402
from kdscale.models.head import ModelWithHead  # noqa: E402
from kdscale.models.load import build_model, make_config  # noqa: E402
from kdscale.models.sharded import load_teacher  # noqa: E402
from kdscale.run.artifacts import RunArtifacts  # noqa: E402
from kdscale.run.cache_stage import own_store, plan_capture  # noqa: E402
from kdscale.run.pipeline import run_pipeline  # noqa: E402
from kdscale.teacher.capture import CaptureJob, fill_cache  # noqa: E402
from kdscale.train.backends.base import Backend, make_backend  # noqa: E402
from kdscale.train.loop import Step  # noqa: E402
from kdscale.workers.group import WorkerGroups, run_workers  # noqa: E402
from kdscale.workers.progress import stage_progress  # noqa: E402
from kdscale.workers.ray_session import ray_session  # noqa: E402

KEPT = ROOT / "benchmarks" / "results" / "scaling.json"
QUICKSTART = ROOT / "jobs" / "configs" / "quickstart.yaml"
RESULT, MARKS = "turns.json", "marks.json"
LAYOUT = WorkersConfig(count=2, cpus=1)
# Large enough that a step is mostly arithmetic, as with any model that one would distil.
TEACHER = {"hidden_size": 512, "intermediate_size": 1408, "num_hidden_layers": 6}
STUDENT = {"hidden_size": 384, "intermediate_size": 1024, "num_hidden_layers": 4}
ROWS, BATCH_ROWS, STEPS = 64, 32, 2
RATE = 1e-4
WORKS = ("forward", "capture", "distill")


def main(
    quick: bool = typer.Option(False, help="One turn, to see that it works."),
    turns: int = typer.Option(5, min=1, help="Turns that count, after one to warm up."),
    starts: int = typer.Option(3, min=1, help="Worker groups started, after one to warm up."),
) -> None:
    """Measure, print and keep."""
    started = time.perf_counter()
    turns, starts = (1, 1) if quick else (turns, starts)
    with tempfile.TemporaryDirectory() as scratch, ray_session():
        config = make_run(str(Path(scratch) / "run"), turns)
        for stage in ("prepare", "teacher"):
            run_pipeline(config, only=stage)
        run = RunArtifacts(config)
        job = plan_capture(run, own_store(run).put_if_absent)
        with stage_progress("scaling") as progress:
            run_workers(TurnsJob(job, turns), LAYOUT, progress)
        found = json.loads(job.output.get(RESULT))
        marked = [start_stage(job) for _ in range(starts + 1)][1:]
        handed = hand_over(job, starts)
    rows = [summary(work, found) for work in WORKS]
    result = {
        "benchmark": "scaling",
        "machine": {"cpu": platform.machine(), "cores": os.cpu_count()},
        "versions": {name: version(name) for name in ("kdscale", "torch", "ray", "transformers")},
        "seconds": round(time.perf_counter() - started),
        "rows": rows,
        "start": {
            name: {
                key: statistics.median(one[name][key] for one in marked) for key in marked[0][name]
            }
            for name in marked[0]
        },
        "next_stage": handed,
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
        "data.train.limit": 60,
        "data.evaluate.python-docs.limit": 10,
        "data.evaluation_sequences": 16,
        "teacher.training.steps": 1,
        "cache.rows": ROWS,
        "cache.sequences_per_shard": ROWS // 8,
        "cache.sequences_per_chunk": ROWS // 8,
        "cache.capture.micro_batch_size": ROWS // 8,
        "distill.training.steps": STEPS * (turns + 1),
        "distill.training.global_batch_size": BATCH_ROWS,
        "distill.training.micro_batch_size": BATCH_ROWS // 4,
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


@dataclass(frozen=True)
class TurnsJob:
    """All works in turn, on one worker and on two."""

    capture: CaptureJob
    turns: int

    def run(self) -> None:
        """Write the seconds of each work, turn by turn, the warm-up left out."""
        take_turns(self)


def take_turns(job: TurnsJob) -> None:
    """Write the seconds of each work, turn by turn, the warm-up left out."""
    worker = current_rank()
    arms = Arms(job.capture, worker)
    found = []
    for turn in range(job.turns + 1):
        # Who comes first changes, so that a machine that slows down or warms up favours nobody.
        order = [(work, count) for work in WORKS for count in (1, 2)]
        seconds = {}
        for work, count in reversed(order) if turn % 2 else order:
            worker.barrier()
            started = time.perf_counter()
            arms.run(work, count, turn)
            worker.barrier()
            seconds[f"{work} {count}"] = time.perf_counter() - started
        found.append(seconds)
        worker.say(f"turn {turn}: {seconds}")
    if worker.rank == 0:
        arms.spec.output.put(RESULT, json.dumps(found[1:]).encode())


class Arms:
    """What a rank has at hand for its arms: a whole teacher, a cache, and a student for each number
    of workers."""

    def __init__(self, spec: CaptureJob, worker: Rank) -> None:
        self.spec = spec
        self._ranks = {2: worker}
        if worker.rank == 0:
            self._ranks[1] = replace(worker, world_size=1)
        self._prepared = open_prepared(spec.prepared)
        whole = ZeroConfig(stage=0)
        self._teacher = load_teacher(spec.teacher.local(), worker, whole)
        fill_cache(spec, worker, self._teacher, self._prepared)
        self._reader = CacheReader(spec.cache)
        self._loss = DistillationLoss(spec.config, self._reader.codec, None)
        self._students = {count: self._student(rank) for count, rank in self._ranks.items()}

    def run(self, work: str, count: int, turn: int) -> None:
        """This rank's share of `work` when `count` ranks do it; nothing where it has none."""
        if count in self._ranks:
            {"forward": self._forward, "capture": self._capture, "distill": self._distill}[work](
                count, turn
            )

    @torch.no_grad()
    def _forward(self, count: int, turn: int) -> None:
        rank, table = self._ranks[count], self._prepared.split("train")
        for shard in self.spec.plan.shards[rank.rank :: count]:
            rows = table.take(self.spec.selected[shard.start : shard.stop])
            ids, segments, _, _ = row_tensors(rows, rank.device)
            compute_logits(self._teacher, ids, segments, self._prepared.vocab_size)

    def _capture(self, count: int, turn: int) -> None:
        cache = self.spec.output.child(f"turns/{count}-{turn}")
        if self._ranks[count].rank == 0:
            for key in ("plans/", "prior/"):
                for found in self.spec.cache.list(key):
                    cache.put(found, self.spec.cache.get(found))
        self._ranks[count].barrier()
        fresh = replace(self.spec, cache=cache, put_if_absent=cache.put_if_absent)
        fill_cache(fresh, self._ranks[count], self._teacher, self._prepared)

    def _distill(self, count: int, turn: int) -> None:
        backend, steps = self._students[count]
        for number, step in enumerate(islice(steps, STEPS)):
            targets = self._ranks[count].all_reduce_sum(torch.tensor(float(step.targets)))
            for at, batch in enumerate(step.micro_batches, start=1):
                with backend.micro_batch(last=at == len(step.micro_batches)):
                    objective, _ = backend.model(self._loss, batch, turn * STEPS + number)
                    backend.backward(objective / float(targets))
            backend.step(RATE)

    def _student(self, rank: Rank) -> tuple[Backend, Iterator[Step[MicroBatch]]]:
        config, vocab_size = self.spec.config, self._prepared.vocab_size
        distill = config.distill
        assert distill.student.model is not None
        shape = make_config(
            distill.student.model, vocab_size, self._prepared.special_ids, config.data.seq_len
        )
        wrap = partial(ModelWithHead, vocab_size=vocab_size)
        build = partial(build_model, shape, config.seed)
        backend = make_backend(build, wrap, distill.training, BATCH_ROWS, rank)
        sampler = CurriculumSampler(
            distill.curriculum,
            len(self._reader),
            global_batch_size=BATCH_ROWS,
            steps=distill.training.steps,
            seed=config.seed,
            sequences_per_chunk=self._reader.sequences_per_chunk,
        )
        sampler.set_difficulty(0, self._reader.statistics.entropy)
        steps = range(distill.training.steps)
        return backend, read_steps(distill, rank, self._reader, sampler, steps)


def start_stage(job: CaptureJob) -> dict[str, dict[str, float]]:
    """One start of a capture: {what: {"cpu": seconds computed, "wall": seconds since the start}},
    the workers' as those of rank 0, the other processes' until the end."""
    with processes() as computed, stage_progress("start") as progress:
        started = time.time()
        run_workers(MarkJob(job, started), LAYOUT, progress)
        total = time.time() - started
    marks: dict[str, dict[str, float]] = json.loads(job.output.get(MARKS))
    others = {name: {"cpu": cpu} for name, cpu in computed.items() if "TrainWorker" not in name}
    return marks | others | {"whole group": {"wall": total, "cpu": sum(computed.values())}}


def hand_over(job: CaptureJob, times: int) -> dict[str, float]:
    """Median seconds that a stage around a loop that does nothing takes the workers of the stage
    before: {"cpu": of all processes, "wall": }."""
    found = []
    with WorkerGroups() as groups:
        for _ in range(times + 1):
            with processes() as computed, stage_progress("next stage") as progress:
                started = time.time()
                groups.run(EmptyJob(job), LAYOUT, progress)
                wall = time.time() - started
            found.append({"cpu": sum(computed.values()), "wall": wall})
    return {key: statistics.median(each[key] for each in found[1:]) for key in found[0]}


@dataclass(frozen=True)
class EmptyJob:
    """A job that does nothing, as large to send as a capture."""

    capture: CaptureJob

    def run(self) -> None:
        """Do nothing."""


@dataclass(frozen=True)
class MarkJob:
    """The steps of a worker from its start to its first batch."""

    capture: CaptureJob
    started: float  # Unix seconds

    def run(self) -> None:
        """Write what each step takes."""
        mark(self)


def mark(job: MarkJob) -> None:
    """Write what each step from the start to the first batch takes."""
    me = psutil.Process()
    last = [0.0, me.create_time()]
    marks: dict[str, dict[str, float]] = {
        "worker: process starts": {"cpu": 0.0, "wall": last[1] - job.started}
    }

    def note(what: str) -> None:
        cpu, now = sum(me.cpu_times()[:2]), time.time()
        marks[f"worker: {what}"] = {"cpu": cpu - last[0], "wall": now - last[1]}
        last[:] = [cpu, now]

    note("imports, process group")
    import deepspeed  # noqa: F401  for the time that it takes

    note("DeepSpeed")
    spec = job.capture
    worker, prepared = current_rank(), open_prepared(spec.prepared)
    teacher = load_teacher(spec.teacher.local(), worker, ZeroConfig(stage=3))
    note("sharded teacher")
    rows = prepared.split("train").take(spec.selected[:8])
    ids, segments, _, _ = row_tensors(rows, worker.device)
    with torch.no_grad():
        compute_logits(teacher, ids, segments, prepared.vocab_size)
    note("first batch")
    if worker.rank == 0:
        spec.output.put(MARKS, json.dumps(marks).encode())


@contextmanager
def processes() -> Iterator[dict[str, float]]:
    """By title, what the processes below this one compute until the block ends."""
    end = threading.Event()
    before: dict[int, float] = {}  # of processes that were there at the start
    seen: dict[int, tuple[str, float]] = {}
    computed: dict[str, float] = defaultdict(float)

    def look() -> None:
        for process in psutil.Process().children(recursive=True):
            with suppress(psutil.NoSuchProcess):
                cpu = sum(process.cpu_times()[:2])
                title = process.cmdline()[0].split(".")[0] if process.cmdline() else ""
                seen[process.pid] = (title, cpu - before.get(process.pid, 0.0))

    def watch() -> None:
        while not end.wait(0.1):
            look()

    look()
    before.update({pid: cpu for pid, (_, cpu) in seen.items()})
    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield computed
    finally:
        end.set()
        thread.join()
        for title, cpu in seen.values():
            if title.startswith("ray::"):
                computed[title] += cpu


if __name__ == "__main__":
    typer.run(main)
