"""What a step of distilling costs, over a step of plain training, and what an online teacher costs.

    make bench-setup
    python benchmarks/step_cost.py [--quick] [--assets FOLDER] [--turns 5]

The student has three layers of SmolLM2-135M's shape over its 49,152 ids. Three arms take turns, a
few steps each, on the same rows, with two threads, AdamW and the same batch:

    cache   kdscale from a cache on the local disk: reading, verifying, decoding, loss, backward,
            optimiser, all as the distill stage does it
    labels  cross-entropy through the same fused head, from rows that lie in memory
    trl     TRL's generalised JSD with an online teacher, SmolLM2-135M itself, in a process of the
            peers' environment: both forwards, the loss, backward, AdamW

Records are made up (benchmarks/peers/synthetic.py), as their content does not matter to the time.
Ratios are of neighbouring turns, and their median is the value. The last line is one JSON object,
also kept in results/step_cost.json; --quick takes one step a turn and keeps nothing.
"""

import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
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

from benchmarks.peers import kdscale_cache, synthetic  # noqa: E402  after the path is set
from kdscale.cache.read.reader import CacheReader  # noqa: E402
from kdscale.config import RunConfig  # noqa: E402
from kdscale.config.student import DistillConfig  # noqa: E402
from kdscale.curriculum.sampler import CurriculumSampler  # noqa: E402
from kdscale.distill.batches import MicroBatch, read_steps  # noqa: E402
from kdscale.distill.objective import DistillationLoss, LabelsLoss  # noqa: E402
from kdscale.distributed.rank import Rank  # noqa: E402
from kdscale.models.head import ModelWithHead  # noqa: E402
from kdscale.models.load import build_model, load_config_of  # noqa: E402
from kdscale.store import open_store  # noqa: E402
from kdscale.train.backends.base import Backend, make_backend  # noqa: E402
from kdscale.train.loop import Step  # noqa: E402

KEPT = ROOT / "benchmarks" / "results" / "step_cost.json"
PEERS_PYTHON = ROOT / ".venv-bench" / "bin" / "python"
LAYERS, ROW_LENGTH, BATCH_ROWS = 3, 512, 4
THREADS = 2
ROWS = 512
RATE = 1e-4


def main(
    quick: bool = typer.Option(False, help="One step a turn, to see that it works."),
    assets: Path = typer.Option(ROOT / "assets", help="Folder that assets.py wrote."),
    turns: int = typer.Option(5, min=1, help="Turns that count, after one to warm up."),
    peers_python: Path = typer.Option(PEERS_PYTHON, help="The peers' Python."),
) -> None:
    """Measure, print and keep."""
    torch.set_num_threads(THREADS)
    turns, steps = (1, 1) if quick else (turns, 4)
    teacher = assets / "smollm2-135m-instruct"
    with tempfile.TemporaryDirectory() as scratch:
        cache = Path(scratch) / "cache"
        rows = BATCH_ROWS * 16 if quick else ROWS
        kdscale_cache.write(synthetic.make_records(rows, ROW_LENGTH), cache)
        ours = Ours(cache, teacher, steps * (turns + 1))
        with Live(peers_python, teacher, steps) as live:
            arms = {"cache": ours.cache, "labels": ours.labels, "trl": lambda _: live.turn()}
            found = [{name: arm(steps) for name, arm in arms.items()} for _ in range(turns + 1)][1:]
            trl = live.version
    seconds = {name: [turn[name] for turn in found] for name in found[0]}
    over_labels = [turn["cache"] / turn["labels"] for turn in found]
    over_cache = [turn["trl"] / turn["cache"] for turn in found]
    result = {
        "benchmark": "step_cost",
        "machine": {"cpu": platform.machine(), "cores": os.cpu_count()},
        "versions": {**{n: version(n) for n in ("kdscale", "torch", "transformers")}, "trl": trl},
        "tokens_a_step": BATCH_ROWS * ROW_LENGTH,
        "rows": [
            {
                "arm": name,
                "seconds_a_step": statistics.median(some) / steps,
                "least": min(some) / steps,
                "most": max(some) / steps,
            }
            for name, some in seconds.items()
        ],
        "spread": {"step_over_cross_entropy": over_labels, "online_teacher_over_step": over_cache},
        "goals": [
            {
                "name": "step_over_cross_entropy",
                "value": statistics.median(over_labels),
                "goal": "<=1.03",
            },
            {
                "name": "online_teacher_over_step",
                "value": statistics.median(over_cache),
                "goal": ">1",
            },
        ],
    }
    if not quick:
        KEPT.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result))


class Ours:
    """The arms of kdscale, each with a student of its own that starts from the same weights."""

    def __init__(self, cache: Path, teacher: Path, steps: int) -> None:
        config = make_config(str(cache), steps)
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

    def cache(self, steps: int) -> float:
        """Seconds of some steps of distilling."""
        return self._timed("cache", islice(self._cached, steps), self._distillation)

    def labels(self, steps: int) -> float:
        """Seconds of as many of plain training."""
        return self._timed("labels", islice(self._in_memory, steps), LabelsLoss())

    def _timed(self, name: str, steps: Iterator[Step[MicroBatch]], loss: Any) -> float:
        backend: Backend = self._backends[name]
        backend.model.train()
        started = time.perf_counter()
        for number, step in enumerate(steps):
            (batch,) = step.micro_batches
            with backend.micro_batch(last=True):
                objective, _ = backend.model(loss, batch, number)
                backend.backward(objective / step.targets)
            backend.step(RATE)
        return time.perf_counter() - started


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


class Live:
    """TRL's arm in a process of its own, which waits between its turns."""

    def __init__(self, python: Path, teacher: Path, steps: int) -> None:
        if not python.exists():
            raise SystemExit(f"{python} does not exist: run `make bench-setup`.")
        arguments = [str(teacher), *map(str, (LAYERS, BATCH_ROWS, ROW_LENGTH, steps, THREADS))]
        self._process = subprocess.Popen(
            [str(python.absolute()), "-m", "benchmarks.online_trl", *arguments],
            cwd=ROOT,
            env={**os.environ, "OMP_NUM_THREADS": str(THREADS), "HF_HUB_OFFLINE": "1"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.version = self._answer()

    def turn(self) -> float:
        """Seconds of its steps."""
        assert self._process.stdin is not None
        self._process.stdin.write("go\n")
        self._process.stdin.flush()
        return float(self._answer())

    def _answer(self) -> str:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit("the process of TRL's arm ended, see above")
        return line.strip()

    def __enter__(self) -> "Live":
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()


if __name__ == "__main__":
    typer.run(main)
