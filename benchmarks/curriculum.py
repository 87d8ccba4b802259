"""Does the order of the rows matter? The same budget in uniform, easy, hard and random order.

    python benchmarks/assets.py
    python benchmarks/curriculum.py [--quick] [--assets FOLDER] [--keep FOLDER] [--seeds 3]

The teacher, the corpus and the students are those of quality.py, the targets `varopt` with 12 ids;
the learning rate is the one that trains fastest. `easy`, `hard` and `random` share a pacing: the
pool grows from a quarter of the rows to all of them over the first quarter of the steps. `random`
is the baseline of Wu et al.
(ICLR 2021): the pacing without the difficulty, which is the teacher's mean entropy. `uniform` has
no curriculum. Each starts once from three of the teacher's layers and once at random.

Differences are to `uniform` of the same seed, which starts from the same weights. An arm that is
finished is kept in --keep and not run again. The last line is one JSON object, also kept in
results/curriculum.json; --quick trains a few steps and keeps nothing.
"""

import json
import os
import platform
import statistics
import sys
import tempfile
from collections.abc import Mapping
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import typer

ROOT = Path(__file__).parents[1]
# Of a script only its own folder is on the path.
sys.path.insert(0, str(ROOT))

from benchmarks.ablation.corpus import Corpus, load_corpora  # noqa: E402  after the path is set
from benchmarks.ablation.kept import keep  # noqa: E402
from benchmarks.ablation.setting import (  # noqa: E402
    BATCH_ROWS,
    FROM_TEACHER,
    HELD_OUT_ROWS,
    NARROW,
    ROW_LENGTH,
    ROWS,
    arguments_of,
    make_config,
    once,
)
from benchmarks.ablation.student import (  # noqa: E402
    Arm,
    Students,
    run_arm,
)
from kdscale.cache.codecs import make_codec  # noqa: E402
from kdscale.config.cache import VaroptCodec  # noqa: E402

KEPT = ROOT / "benchmarks" / "results" / "curriculum.json"
CODEC = VaroptCodec(k=12, head=4)
RATE = 4e-3
LAYERS = 3
WARMUP_SHARE = 0.25
STARTS: dict[str, dict[str, Any]] = {
    "teacher": FROM_TEACHER,
    "scratch": {
        "model": {
            "architecture": "llama",
            "options": {**NARROW, "num_hidden_layers": LAYERS, "tie_word_embeddings": True},
        }
    },
}
ORDERS: dict[str, dict[str, Any]] = {
    "uniform": {"warmup_share": 0},
    **{
        order: {"warmup_share": WARMUP_SHARE, "order": order}
        for order in ("easy", "hard", "random")
    },
}


def main(
    quick: bool = typer.Option(False, help="A few steps, to see that it works."),
    assets: Path = typer.Option(ROOT / "assets", help="Folder that assets.py wrote."),
    keep_in: Path = typer.Option(ROOT / "runs" / "quality", "--keep", help="What is finished."),
    seeds: int = typer.Option(3, min=1, help="Students of each arm."),
) -> None:
    """Measure all arms, print and keep."""
    torch.set_num_threads(os.cpu_count() or 1)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) if quick else keep_in
        rows, seeds = (4 * BATCH_ROWS, 1) if quick else (ROWS, seeds)
        counts = {"train": rows, "heldout": 2 if quick else HELD_OUT_ROWS}
        corpora = load_corpora(assets, folder, ROW_LENGTH, counts)
        scores = measure(corpora["train"], corpora["heldout"], assets, folder, range(seeds))
    rows_found = [row for start in STARTS for row in summaries(start, scores)]
    found = {
        "benchmark": "curriculum",
        "machine": {"cpu": platform.machine(), "cores": os.cpu_count()},
        "versions": {name: version(name) for name in ("kdscale", "torch", "transformers")},
        "tokens": corpora["train"].targets,
        "held_out_tokens": corpora["heldout"].targets,
        "seeds": seeds,
        "rows": rows_found,
        "goals": [],
    }
    if not quick:
        KEPT.write_text(json.dumps(found, indent=1) + "\n")
    print(json.dumps(found))


def measure(
    train: Corpus, held_out: Corpus, assets: Path, folder: Path, seeds: range
) -> dict[tuple[str, str], list[dict[str, float]]]:
    """Scores of every (start, order), seed by seed."""
    teacher = assets / "smollm2-135m-instruct"
    kept = keep({"varopt": CODEC}, train, folder / "codecs")["varopt"]
    arm = Arm(kept.payload, make_codec(CODEC, train.vocab_size))
    entropy, _ = train.statistics
    found: dict[tuple[str, str], list[dict[str, float]]] = {}
    for seed in seeds:
        for start, student in STARTS.items():
            students = Students(make_config(len(train), seed, student), teacher, train)
            for order, curriculum in ORDERS.items():
                optimiser = {"learning_rate": RATE}
                run = make_config(len(train), seed, student, curriculum, optimiser)
                settings = [arguments_of(run), CODEC.model_dump()]
                name = f"{start}-{order}-{seed}"
                trained = partial(run_arm, run, students, train, held_out, arm, entropy)
                scores = once(folder / "curriculum", name, settings, trained)
                found.setdefault((start, order), []).append(scores)
    return found


def summaries(
    start: str, scores: Mapping[tuple[str, str], list[dict[str, float]]]
) -> list[dict[str, Any]]:
    """Of each order: mean and deviation over seeds, of the scores and of what they are more than
    those of `uniform`."""
    found = []
    for order in ORDERS:
        row: dict[str, Any] = {"start": start, "order": order}
        for score in ("loss", "kl", "agreement"):
            values = [each[score] for each in scores[start, order]]
            uniform = [each[score] for each in scores[start, "uniform"]]
            more = [mine - other for mine, other in zip(values, uniform, strict=True)]
            row |= _spread(score, values) | _spread(f"{score}_over_uniform", more)
        found.append(row)
    return found


def _spread(name: str, values: list[float]) -> dict[str, float]:
    deviation = statistics.stdev(values) if len(values) > 1 else 0.0
    return {name: statistics.mean(values), f"{name}_deviation": deviation}


if __name__ == "__main__":
    typer.run(main)
