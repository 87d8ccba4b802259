"""Curriculum: the same budget in uniform, easy, hard and random order.

    python benchmarks/assets.py
    python benchmarks/curriculum.py [--quick] [--assets FOLDER] [--keep FOLDER] [--seeds 3]

The teacher, the corpus and the students are those of quality.py, the targets `varopt` with 12 ids;
the learning rate is the one that trains fastest. `easy`, `hard` and `random` share a pacing: the
pool grows from a quarter of the rows to all of them over the first quarter of the steps. `random`
is the baseline of Wu et al.
(ICLR 2021): the pacing without the difficulty, which is the teacher's mean entropy. `uniform` has
no curriculum. Each starts once from three of the teacher's layers and once at random.

Differences are to `uniform` of the same seed, which starts from the same weights. A variant that is
finished is kept in --keep and not run again. The last line is one JSON object, also kept in
results/curriculum.json; --quick trains a few steps and keeps nothing.
"""

import os
import sys
import tempfile
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
import typer

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.ablation.corpus import Corpus, load_corpora
from benchmarks.ablation.kept import keep
from benchmarks.ablation.setting import (
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
from benchmarks.ablation.student import Students, Variant, run_variant
from benchmarks.common import (
    ASSETS,
    ROOT,
    TEACHER,
    Assets,
    Keep,
    Quick,
    Row,
    Seeds,
    deviation,
    report,
)
from kdscale.cache.codecs import make_codec
from kdscale.config.cache import VaroptCodec

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
    quick: Quick = False,
    assets: Assets = ASSETS,
    keep_in: Keep = ROOT / "runs" / "quality",
    seeds: Seeds = 3,
) -> None:
    """Measure all variants, print and keep."""
    torch.set_num_threads(os.cpu_count() or 1)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) if quick else keep_in
        rows, seeds = (4 * BATCH_ROWS, 1) if quick else (ROWS, seeds)
        counts = {"train": rows, "heldout": 2 if quick else HELD_OUT_ROWS}
        corpora = load_corpora(assets, folder, ROW_LENGTH, counts)
        train, held_out = corpora["train"], corpora["heldout"]
        scores = measure(train, held_out, assets / TEACHER, folder, range(seeds))
    report(
        "curriculum",
        [row for start in STARTS for row in summaries(start, scores)],
        [],
        keep=not quick,
        tokens=train.targets,
        held_out_tokens=held_out.targets,
        seeds=seeds,
    )


def measure(
    train: Corpus, held_out: Corpus, teacher: Path, folder: Path, seeds: range
) -> dict[tuple[str, str], list[dict[str, float]]]:
    """Return the scores of every (start, order), seed by seed."""
    kept = keep({"varopt": CODEC}, train, folder / "codecs")["varopt"]
    variant = Variant(kept.payload, make_codec(CODEC, train.vocab_size))
    found: dict[tuple[str, str], list[dict[str, float]]] = {}
    for seed in seeds:
        for start, student in STARTS.items():
            students = Students(make_config(len(train), seed, student), teacher, train)
            for order, curriculum in ORDERS.items():
                optimiser = {"learning_rate": RATE}
                run = make_config(len(train), seed, student, curriculum, optimiser)
                settings = [arguments_of(run), CODEC.model_dump()]
                name = f"{start}-{order}-{seed}"
                trained = partial(
                    run_variant, run, students, train, held_out, variant, train.entropy
                )
                scores = once(folder / "curriculum", name, settings, trained)
                found.setdefault((start, order), []).append(scores)
    return found


def summaries(start: str, scores: Mapping[tuple[str, str], list[dict[str, float]]]) -> list[Row]:
    """Return a row for each order: its scores over seeds, and their differences to `uniform`."""
    found = []
    for order in ORDERS:
        row: Row = {"start": start, "order": order}
        for score in ("loss", "kl", "agreement"):
            values = [each[score] for each in scores[start, order]]
            uniform = [each[score] for each in scores[start, "uniform"]]
            more = [mine - other for mine, other in zip(values, uniform, strict=True)]
            row |= deviation(score, values) | deviation(f"{score}_over_uniform", more)
        found.append(row)
    return found


if __name__ == "__main__":
    typer.run(main)
