"""Cost of a step of distilling, over a step of plain training and over an online teacher.

    make bench-setup
    python benchmarks/step_cost.py [--quick] [--assets FOLDER] [--turns 5]

The student has three layers of SmolLM2-135M's shape over its 49,152 ids. Three variants take turns,
a few steps each, on the same rows, with two threads, AdamW and the same batch:

    cache   kdscale from a cache on the local disk: reading, verifying, decoding, loss, backward,
            optimiser, all as the distill stage does it
    labels  cross-entropy through the same fused head, from rows that lie in memory
    trl     TRL's generalised JSD with an online teacher, SmolLM2-135M itself, in a process of the
            peers' environment: both forwards, the loss, backward, AdamW

Records are made up (benchmarks/peers/synthetic.py), as their content does not matter to the time.
Ratios are of neighbouring turns, and their median is the value. The last line is one JSON object,
also kept in results/step_cost.json; --quick takes one step a turn and keeps nothing.
"""

import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, Self

import torch
import typer

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.common import (
    ASSETS,
    PEERS_PYTHON,
    ROOT,
    TEACHER,
    Assets,
    PeersPython,
    Quick,
    Turns,
    goal,
    ratios,
    report,
    require,
    take_turns,
)
from benchmarks.peers import kdscale_cache, synthetic
from kdscale.cache.read.reader import CacheReader
from kdscale.config import RunConfig
from kdscale.config.student import DistillConfig
from kdscale.curriculum.sampler import CurriculumSampler
from kdscale.distill.batches import MicroBatch
from kdscale.distill.objective import DistillationLoss, LabelsLoss
from kdscale.distill.steps import read_steps
from kdscale.distributed.rank import Rank
from kdscale.models.head import ModelWithHead
from kdscale.models.load import build_model, load_config_of
from kdscale.store import open_store
from kdscale.train.backends.base import Backend, make_backend
from kdscale.train.loop import Step

LAYERS, ROW_LENGTH, BATCH_ROWS = 3, 512, 4
THREADS = 2
ROWS = 512
RATE = 1e-4


def main(
    quick: Quick = False,
    assets: Assets = ASSETS,
    turns: Turns = 5,
    peers_python: PeersPython = PEERS_PYTHON,
) -> None:
    """Measure, print and keep."""
    torch.set_num_threads(THREADS)
    turns, steps = (1, 1) if quick else (turns, 4)
    with tempfile.TemporaryDirectory() as scratch:
        cache = Path(scratch) / "cache"
        rows = BATCH_ROWS * 16 if quick else ROWS
        kdscale_cache.write(synthetic.make_records(rows, ROW_LENGTH), cache)
        ours = Ours(cache, assets / TEACHER, steps, turns + 1)
        with Online(require(peers_python), assets / TEACHER, steps) as online:
            variants = {"cache": ours.cache, "labels": ours.labels, "trl": online.turn}
            found = take_turns(variants, turns)
    over_labels = ratios(found, "cache", "labels")
    over_cache = ratios(found, "trl", "cache")
    rows_found = []
    for name in variants:
        seconds = [turn[name] / steps for turn in found]
        row = {"arm": name, "seconds_a_step": statistics.median(seconds)}
        rows_found.append(row | {"least": min(seconds), "most": max(seconds)})
    report(
        "step_cost",
        rows_found,
        [
            goal("step_over_cross_entropy", statistics.median(over_labels), "<=1.03"),
            goal("online_teacher_over_step", statistics.median(over_cache), ">1"),
        ],
        keep=not quick,
        versions={"trl": online.version},
        tokens_a_step=BATCH_ROWS * ROW_LENGTH,
        spread={"step_over_cross_entropy": over_labels, "online_teacher_over_step": over_cache},
    )


class Ours:
    """Variants of kdscale, each with a student that starts from the same weights."""

    def __init__(self, cache: Path, teacher: Path, steps: int, turns: int) -> None:
        config = make_config(str(cache), steps * turns)
        self._steps_a_turn = steps
        self._worker = Rank(0, 1, torch.device("cpu"))
        shape = load_config_of(teacher)
        shape.num_hidden_layers = LAYERS
        self._backends = {
            name: make_backend(
                lambda: build_model(shape, 0),
                partial(ModelWithHead, vocab_size=synthetic.VOCAB),
                config.distill.training,
                1,
                self._worker,
            )
            for name in ("cache", "labels")
        }
        reader = CacheReader(open_store(str(cache)))
        self._distillation = DistillationLoss(config, reader.codec, None)
        self._cached = self._steps(config.distill, reader)
        self._in_memory = list(islice(self._steps(config.distill, reader), 8))

    def _steps(self, distill: DistillConfig, reader: CacheReader) -> Iterator[Step[MicroBatch]]:
        sampler = CurriculumSampler(
            distill.curriculum,
            len(reader),
            global_batch_size=BATCH_ROWS,
            steps=distill.training.steps,
            seed=0,
            sequences_per_chunk=reader.sequences_per_chunk,
        )
        sampler.set_difficulty(0, reader.statistics.entropy)
        return read_steps(distill, self._worker, reader, sampler, range(distill.training.steps))

    def cache(self) -> None:
        """Take the steps of a turn of distilling."""
        self._train("cache", self._cached, self._distillation)

    def labels(self) -> None:
        """Take as many steps of plain training."""
        self._train("labels", self._in_memory, LabelsLoss())

    def _train(self, name: str, steps: Iterable[Step[MicroBatch]], loss: Any) -> None:
        backend: Backend = self._backends[name]
        backend.model.train()
        for number, step in enumerate(islice(steps, self._steps_a_turn)):
            (batch,) = step.micro_batches
            with backend.micro_batch(last=True):
                objective, _ = backend.model(loss, batch, number)
                backend.backward(objective / step.targets)
            backend.step(RATE)


def make_config(cache: str, steps: int) -> RunConfig:
    """Return a config with what the parts of the distill stage read of it."""
    return RunConfig.model_validate(
        {
            "name": "step-cost",
            "output": "unused",
            "data": {
                "train": {"kind": "text", "path": "unused"},
                "tokenizer": {"kind": "teacher"},
                "seq_len": ROW_LENGTH,
            },
            "teacher": {"load": "unused"},
            "cache": {"reuse": cache},
            "distill": {
                "student": {"teacher_layers": [0]},
                "loss": {"kd_weight": {"start": 0.5}},
                "curriculum": {"warmup_share": 0},
                "training": {
                    "steps": steps,
                    "global_batch_size": BATCH_ROWS,
                    "micro_batch_size": BATCH_ROWS,
                },
            },
        }
    )


class Online:
    """Process of TRL with an online teacher, which waits between its turns."""

    def __init__(self, python: Path, teacher: Path, steps: int) -> None:
        arguments = [str(teacher), *map(str, (LAYERS, BATCH_ROWS, ROW_LENGTH, steps, THREADS))]
        self._process = subprocess.Popen(
            [str(python), "-m", "benchmarks.online_trl", *arguments],
            cwd=ROOT,
            env={**os.environ, "OMP_NUM_THREADS": str(THREADS), "HF_HUB_OFFLINE": "1"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.version = self._answer()

    def turn(self) -> None:
        """Take the steps of a turn."""
        assert self._process.stdin is not None
        self._process.stdin.write("go\n")
        self._process.stdin.flush()
        self._answer()

    def _answer(self) -> str:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit("the process of TRL ended, see above")
        return line.strip()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()


if __name__ == "__main__":
    typer.run(main)
