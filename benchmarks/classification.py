"""A classifier distilled on BBC news: teacher, student and baseline, over three seeds.

    python benchmarks/assets.py
    python benchmarks/classification.py [--quick] [--seeds 3] [--keep runs/classification]

jobs/configs/bbc-classify.yaml: all-MiniLM-L6-v2 (22.7 M parameters) is fine-tuned to tell five
kinds of news, and a student of two of its layers at half the width is distilled from its cache.
The baseline is the same student trained on the labels alone.

    all             every training article has its label
    tenth           a tenth of them have; the cache covers the others too
    truncated       the longest quarter of the articles alone, by their first 128 tokens
    hierarchical    the same by four chunks of 128, scored one by one and combined by attention

Scores are of articles whose stories the training set does not tell. A finished run is kept in
--keep and not made again. The last line is one JSON object, also kept in
results/classification.json; --quick takes a few steps and keeps nothing.
"""

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import typer

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.common import (
    ASSETS,
    CONFIGS,
    ROOT,
    Assets,
    Keep,
    Quick,
    Row,
    Seeds,
    finished,
    goal,
    interval,
    report,
)

LONG_SHARE = 0.25
# An epoch, in more and smaller steps than where articles are many.
FEW_ARTICLES = {
    "teacher.training.steps": 160,
    "teacher.training.global_batch_size": 8,
    "teacher.training.micro_batch_size": 4,
    "distill.training.steps": 150,
}
EXPERIMENTS: dict[str, dict[str, Any]] = {
    "all": {},
    # The teacher knows the labels of that tenth, so the student follows the teacher alone.
    "tenth": {
        "data.labels.share": 0.1,
        "teacher.training.steps": 80,
        "distill.training.steps": 400,
        "distill.loss.kd_weight": {"kind": "constant", "start": 1.0},
    },
    "truncated": FEW_ARTICLES,
    "hierarchical": {
        **FEW_ARTICLES,
        "data.long_documents": "hierarchical",
        "data.seq_len": 512,
        "data.chunks": {"length": 128, "pooling": "attention"},
    },
}
LONG = ("truncated", "hierarchical")
SCORES = ("accuracy", "precision_macro", "recall_macro", "f1_macro")
QUICK = {
    "teacher.training.steps": 2,
    "teacher.training.validate_every": 2,
    "distill.training.steps": 2,
    "distill.training.validate_every": 2,
    "cache.sequences": 64,
}


def main(
    quick: Quick = False,
    assets: Assets = ASSETS,
    keep_in: Keep = ROOT / "runs" / "classification",
    seeds: Seeds = 3,
) -> None:
    """Run what is missing, print and keep."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) if quick else keep_in
        rows = [
            row
            for name in EXPERIMENTS
            for row in measure(name, assets, folder, range(1 if quick else seeds), quick)
        ]
    report("classification", rows, goals(rows), keep=not quick)


def measure(name: str, assets: Path, folder: Path, seeds: range, quick: bool) -> list[Row]:
    """Return a row for each model of one experiment, and one for the student over its baseline."""
    corpus = longest(assets / "bbc", folder / "longest") if name in LONG else assets / "bbc"
    settings = {
        "data.train.path": str(corpus / "train.jsonl"),
        "data.evaluate.heldout.path": str(corpus / "heldout.jsonl"),
        "teacher.load": str(assets / "minilm-l6"),
        **EXPERIMENTS[name],
        **(QUICK if quick else {}),
    }
    runs = [
        finished(
            CONFIGS / "bbc-classify.yaml", folder / f"{name}-{seed}", {**settings, "seed": seed}
        )["models"]
        for seed in seeds
    ]

    def scores(model: str, domain: str, score: str) -> np.ndarray:
        return np.array([run[model]["domains"][domain][score] for run in runs])

    rows = [
        {
            "experiment": name,
            "model": model,
            "parameters": runs[0][model]["parameters"],
            **{score: interval(scores(model, "heldout", score).tolist()) for score in SCORES},
            "validation_loss": interval(scores(model, "validation", "loss").tolist()),
        }
        for model in ("teacher", "student", "baseline")
    ]
    lead = {
        score: interval(
            (scores("student", "heldout", score) - scores("baseline", "heldout", score)).tolist()
        )
        for score in SCORES
    }
    return [*rows, {"experiment": name, "model": "student - baseline", **lead}]


def longest(corpus: Path, folder: Path) -> Path:
    """Write the longest quarter of the articles to `folder` and return it.

    They have more words than three quarters of the training set.
    """
    articles = {
        split: [json.loads(line) for line in (corpus / f"{split}.jsonl").open()]
        for split in ("train", "heldout")
    }
    words = [len(each["text"].split()) for each in articles["train"]]
    least = np.quantile(words, 1 - LONG_SHARE)
    folder.mkdir(parents=True, exist_ok=True)
    for split, found in articles.items():
        kept = [json.dumps(each) for each in found if len(each["text"].split()) > least]
        (folder / f"{split}.jsonl").write_text("\n".join(kept) + "\n")
    return folder


def goals(rows: list[Row]) -> list[Row]:
    """Compare the student with its baseline and, at most 1.5 points of F1 below, its teacher."""
    f1 = {(row["experiment"], row["model"]): row["f1_macro"]["mean"] for row in rows}
    found = []
    for name in EXPERIMENTS:
        if name not in LONG:
            behind = f1[name, "teacher"] - f1[name, "student"]
            found += [
                goal(f"f1_over_baseline_{name}", f1[name, "student - baseline"], ">0"),
                goal(f"f1_behind_teacher_{name}", behind, "<=0.015"),
            ]
    return found


if __name__ == "__main__":
    typer.run(main)
