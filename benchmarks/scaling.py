"""Scaling: gain of a second worker in capture and distillation, and cost of a stage's start.

    python benchmarks/scaling.py [--quick] [--turns 5]

**Scaling.** One worker group of two workers with a core each. Variants take turns on the same work:
one rank does all of it while the other waits at a barrier, or both share it as the stages do.
Forwards alone show the gain of a second core on this machine. Efficiency is the time of one over
twice the time of both, as a median of the turns.

**Starting.** Wall time and computing of a stage around a loop that does nothing: with a fresh
worker group, and with the workers of the stage before. Seconds of computing say more than wall time
on a busy machine.

The last line is one JSON object, also kept in results/scaling.json; --quick takes one turn each and
keeps nothing.
"""

import json
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import psutil
import torch
import typer

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks import capture_work
from benchmarks.common import CONFIGS, Quick, Row, Turns, goal, report
from kdscale.cache.read.reader import CacheReader
from kdscale.config import RunConfig, load_config
from kdscale.config.training import WorkersConfig, ZeroConfig
from kdscale.curriculum.sampler import CurriculumSampler
from kdscale.data.rows.prepared import open_prepared
from kdscale.distill.batches import MicroBatch
from kdscale.distill.objective import DistillationLoss
from kdscale.distill.steps import read_steps
from kdscale.distributed.rank import Rank, current_rank
from kdscale.models.head import ModelWithHead
from kdscale.models.load import build_model, make_config
from kdscale.run.artifacts import RunArtifacts
from kdscale.run.pipeline import run_pipeline
from kdscale.run.stages.cache import own_store, plan_capture
from kdscale.teacher.capture import CaptureJob, fill_cache
from kdscale.teacher.states import place_captured
from kdscale.train.backends.base import Backend, make_backend
from kdscale.train.loop import Step
from kdscale.workers.group import WorkerGroups, run_workers
from kdscale.workers.progress import stage_progress
from kdscale.workers.ray_session import ray_session

RESULT = "turns.json"
LAYOUT = WorkersConfig(count=2, cpus=1)
# Large enough that a step is mostly arithmetic, as with any model that one would distil.
TEACHER = {"hidden_size": 512, "intermediate_size": 1408, "num_hidden_layers": 6}
STUDENT = {"hidden_size": 384, "intermediate_size": 1024, "num_hidden_layers": 4}
ROWS, BATCH_ROWS, STEPS = 64, 32, 2
RATE = 1e-4
WORKS = ("forward", "capture", "distill")


def main(quick: Quick = False, turns: Turns = 5) -> None:
    """Measure, print and keep."""
    started = time.perf_counter()
    turns = 1 if quick else turns
    with tempfile.TemporaryDirectory() as scratch, ray_session():
        config = make_run(str(Path(scratch) / "run"), turns)
        for stage in ("prepare", "teacher"):
            run_pipeline(config, only=stage)
        run = RunArtifacts(config)
        job = plan_capture(run, own_store(run).put_if_absent)
        with stage_progress("scaling") as progress:
            run_workers(TurnsJob(job, turns), LAYOUT, progress)
        found = json.loads(job.output.get(RESULT))
        starts = stage_starts(job, turns)
    rows = [summary(work, found) for work in WORKS]
    goals = [
        goal(f"{row['work']}_efficiency_2_workers", row["efficiency"], ">=0.9") for row in rows[1:]
    ]
    seconds = round(time.perf_counter() - started)
    report("scaling", rows, goals, keep=not quick, seconds=seconds, **starts)


def make_run(output: str, turns: int) -> RunConfig:
    """Return the quickstart with larger models, a teacher trained for one step, and few rows."""
    changes: dict[str, Any] = {
        "output": output,
        "data.train.limit": 60,
        "data.evaluate.python-docs.limit": 10,
        "data.evaluation_sequences": 16,
        "teacher.training.steps": 1,
        "cache.sequences": ROWS,
        "cache.sequences_per_shard": ROWS // 8,
        "cache.sequences_per_chunk": ROWS // 8,
        "cache.capture.micro_batch_size": ROWS // 8,
        "distill.training.steps": STEPS * (turns + 1),
        "distill.training.global_batch_size": BATCH_ROWS,
        "distill.training.micro_batch_size": BATCH_ROWS // 4,
        "tracking.wandb": "disabled",
    }
    for model, sizes in (("teacher.model", TEACHER), ("distill.student.model", STUDENT)):
        changes |= {f"{model}.options.{name}": value for name, value in sizes.items()}
    return load_config(
        CONFIGS / "quickstart.yaml", [f"{key}={value}" for key, value in changes.items()]
    )


def summary(work: str, turns: list[dict[str, float]]) -> Row:
    """Return the efficiency of two workers at `work`."""
    one, two = ([turn[f"{work} {count}"] for turn in turns] for count in (1, 2))
    efficiencies = [single / both / 2 for single, both in zip(one, two, strict=True)]
    return {
        "work": work,
        "turns": len(turns),
        "seconds_1_worker": statistics.median(one),
        "seconds_2_workers": statistics.median(two),
        "efficiency": statistics.median(efficiencies),
        "least": min(efficiencies),
        "most": max(efficiencies),
    }


@dataclass(frozen=True)
class TurnsJob:
    """Job of a worker: all works turn by turn, by one worker and by two."""

    capture: CaptureJob
    turns: int

    def run(self) -> None:
        """Write the seconds of each work in each turn.

        The first turn warms up. The order changes, so that a machine that slows down favours none.
        """
        worker = current_rank()
        works = Works(self.capture, worker)
        found = []
        for turn in range(self.turns + 1):
            order = [(work, count) for work in WORKS for count in (1, 2)]
            seconds = {}
            for work, count in reversed(order) if turn % 2 else order:
                run = partial(works.run, work, count, turn)
                seconds[f"{work} {count}"] = capture_work.seconds_of(run, worker)
            found.append(seconds)
            worker.say(f"turn {turn}: {seconds}")
        if worker.rank == 0:
            self.capture.output.put(RESULT, json.dumps(found[1:]).encode())


@dataclass(frozen=True)
class EmptyJob:
    """Job that does nothing, as large to send as a capture."""

    capture: CaptureJob

    def run(self) -> None:
        """Do nothing."""


class Works:
    """One rank's teacher, cache, and student for each number of workers."""

    def __init__(self, spec: CaptureJob, worker: Rank) -> None:
        self.spec = spec
        self._ranks = {2: worker}
        if worker.rank == 0:
            self._ranks[1] = replace(worker, world_size=1)
        self._prepared = open_prepared(spec.prepared)
        self._teacher = place_captured(spec.load, worker, ZeroConfig(stage=0), self._prepared)
        fill_cache(spec, worker, self._teacher, self._prepared, spec.group(worker))
        self._reader = CacheReader(spec.cache)
        self._loss = DistillationLoss(spec.config, self._reader.codec, None)
        self._students = {count: self._student(rank) for count, rank in self._ranks.items()}

    def run(self, work: str, count: int, turn: int) -> None:
        """Do this rank's share of `work` when `count` ranks do it, if it has one."""
        if count not in self._ranks:
            return
        arguments = (self.spec, self._ranks[count], self._teacher, self._prepared)
        if work == "forward":
            capture_work.forward(*arguments)
        elif work == "capture":
            capture_work.capture(*arguments, f"turns/{count}-{turn}")
        else:
            self._distill(count, turn)

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


def stage_starts(job: CaptureJob, times: int) -> dict[str, dict[str, float]]:
    """Return median seconds, wall and computed, of a stage with fresh and with waiting workers."""
    found: dict[str, list[dict[str, float]]] = {"start": [], "next_stage": []}
    for _ in range(times + 1):
        with WorkerGroups() as groups:
            for seconds in found.values():
                with computing() as measured, stage_progress("start") as progress:
                    groups.run(EmptyJob(job), LAYOUT, progress)
                seconds.append(measured)
    return {
        name: {key: statistics.median(each[key] for each in seconds[1:]) for key in seconds[0]}
        for name, seconds in found.items()
    }


@contextmanager
def computing() -> Iterator[dict[str, float]]:
    """Measure a block: seconds of "wall" time, and of "cpu" time in Ray's worker processes."""
    end, found = threading.Event(), dict[str, float]()
    before: dict[int, float] = {}  # of processes that were there at the start
    seen: dict[int, float] = {}

    def look() -> None:
        for process in psutil.Process().children(recursive=True):
            with suppress(psutil.NoSuchProcess):
                if "".join(process.cmdline()[:1]).startswith("ray::"):
                    seen[process.pid] = sum(process.cpu_times()[:2])

    def watch() -> None:
        while not end.wait(0.1):
            look()

    look()
    before.update(seen)
    thread, started = threading.Thread(target=watch), time.perf_counter()
    thread.start()
    try:
        yield found
    finally:
        end.set()
        thread.join()
        found["wall"] = time.perf_counter() - started
        found["cpu"] = sum(cpu - before.get(pid, 0.0) for pid, cpu in seen.items())


if __name__ == "__main__":
    typer.run(main)
