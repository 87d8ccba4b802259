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
import os
import platform
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import typer

ROOT = Path(__file__).parents[1]
# Of a script only its own folder is on the path.
sys.path.insert(0, str(ROOT))

from benchmarks.finished import finished, spread  # noqa: E402  after the path is set

CONFIG = ROOT / "jobs" / "configs" / "bbc-classify.yaml"
KEPT = ROOT / "benchmarks" / "results" / "classification.json"
SPLITS = ("train", "heldout")
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
    # Of what the student reads a tenth has a label, which the teacher knows: it follows that alone.
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
    quick: bool = typer.Option(False, help="A few steps, to see that it works."),
    assets: Path = typer.Option(ROOT / "assets", help="Folder that assets.py wrote."),
    keep_in: Path = typer.Option(
        ROOT / "runs" / "classification", "--keep", help="Finished runs are kept here."
    ),
    seeds: int = typer.Option(3, min=1, help="Runs of each experiment."),
    only: list[str] = typer.Option(list(EXPERIMENTS), help="Experiments to make."),
) -> None:
    """Make what is missing, print and keep."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) if quick else keep_in
        rows = [
            row
            for name in only
            for row in measure(name, assets, folder, range(1 if quick else seeds), quick)
        ]
    found = {
        "benchmark": "classification",
        "machine": {"cpu": platform.machine(), "cores": os.cpu_count()},
        "versions": {name: version(name) for name in ("kdscale", "torch", "transformers")},
        "rows": rows,
        "goals": goals(rows),
    }
    if not quick:
        KEPT.write_text(json.dumps(found, indent=1) + "\n")
    print(json.dumps(found))


def measure(
    name: str, assets: Path, folder: Path, seeds: range, quick: bool
) -> list[dict[str, Any]]:
    """A row for each model of one experiment, and one for the student's lead over its baseline."""
    corpus = longest(assets / "bbc", folder / "longest") if name in LONG else assets / "bbc"
    settings = {
        "data.train.path": str(corpus / "train.jsonl"),
        "data.evaluate.heldout.path": str(corpus / "heldout.jsonl"),
        "teacher.load": str(assets / "minilm-l6"),
        **EXPERIMENTS[name],
        **(QUICK if quick else {}),
    }
    runs = [
        finished(CONFIG, folder / f"{name}-{seed}", {**settings, "seed": seed}) for seed in seeds
    ]
    models = [run["models"] for run in runs]
    rows = [
        {
            "experiment": name,
            "model": model,
            "parameters": models[0][model]["parameters"],
            **{
                score: spread([each[model]["domains"]["heldout"][score] for each in models])
                for score in SCORES
            },
            "validation_loss": spread(
                [each[model]["domains"]["validation"]["loss"] for each in models]
            ),
        }
        for model in ("teacher", "student", "baseline")
    ]
    differences = {
        score: spread([_difference(each, "student", "baseline", score) for each in models])
        for score in SCORES
    }
    return [*rows, {"experiment": name, "model": "student - baseline", **differences}]


def longest(corpus: Path, folder: Path) -> Path:
    """A folder with the longest quarter of the articles, as many words as it takes for a quarter of
    the training set to have more."""
    articles = {
        split: [json.loads(line) for line in (corpus / f"{split}.jsonl").open()] for split in SPLITS
    }
    words = [len(each["text"].split()) for each in articles["train"]]
    least = np.quantile(words, 1 - LONG_SHARE)
    folder.mkdir(parents=True, exist_ok=True)
    for split, found in articles.items():
        kept = [json.dumps(each) for each in found if len(each["text"].split()) > least]
        (folder / f"{split}.jsonl").write_text("\n".join(kept) + "\n")
    return folder


def goals(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Of the student: above its baseline, and at most 1.5 points of F1 below its teacher."""
    f1 = {(row["experiment"], row["model"]): row["f1_macro"]["mean"] for row in rows}
    found = []
    for name in dict.fromkeys(row["experiment"] for row in rows):
        if name not in LONG:
            above = f1[name, "student - baseline"]
            behind = f1[name, "teacher"] - f1[name, "student"]
            found += [
                {"name": f"f1_over_baseline_{name}", "value": above, "goal": ">0"},
                {"name": f"f1_behind_teacher_{name}", "value": behind, "goal": "<=0.015"},
            ]
    return found


def _difference(models: dict[str, Any], one: str, other: str, score: str) -> float:
    first, second = (models[name]["domains"]["heldout"][score] for name in (one, other))
    return float(first - second)


if __name__ == "__main__":
    typer.run(main)
