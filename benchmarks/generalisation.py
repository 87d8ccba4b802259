"""Generalisation: does a student hold on domains that it was not trained on, and what helps?

    python benchmarks/assets.py
    python benchmarks/generalisation.py [--quick] [--seeds 3] [--keep runs/generalisation]

A teacher learns from news, program code and documentation together. Its student is distilled on
news alone, several passes over a small cache, without sport, and is then evaluated on

    heldout    news of the same kinds, other stories: the domain that it was trained on
    sport      news of a kind that it never saw
    code       modules of Python's standard library
    docs       documentation of Python packages

as it is (`plain`), with `dropout`, with `augment`ed rows (cut and thinned copies in the cache, so
that the teacher judges what the student reads), and with `both`. All take the same number of steps;
with and without dropout they learn from the same caches.
Cost is what a variant adds in rows and bytes of the cache and in time of the stages.

A finished run is kept in --keep and not made again. The last line is one JSON object, also kept in
results/generalisation.json; --quick takes a few steps and keeps nothing.
"""

import json
import sys
import sysconfig
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

import typer
import yaml

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.common import (
    ASSETS,
    ROOT,
    Assets,
    Keep,
    Quick,
    Row,
    Seeds,
    finished,
    interval,
    kdscale,
    report,
)

LEFT_OUT = "sports"
TRAINED_ON = "heldout"
ARTICLES, MODULES = 300, 120
MOST_CHARACTERS = 20_000  # of a module, so that a few long ones are not most of the code
DROPOUT = 0.1
AUGMENT = {
    "steps": [{"kind": "crop", "least": 0.5}, {"kind": "delete", "share": 0.1}],
    "copies": 2,
}
VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "dropout": {"distill.training.dropout": DROPOUT},
    "augment": {"data.augment": AUGMENT},
    "both": {"distill.training.dropout": DROPOUT, "data.augment": AUGMENT},
}
# Dropout changes the student alone, which learns from the cache of the variant without it.
CACHE_OF = {"dropout": "plain", "both": "augment"}
QUICK = {"distill.training.steps": 4, "distill.training.validate_every": 4, "cache.sequences": 64}


def main(
    quick: Quick = False,
    assets: Assets = ASSETS,
    keep_in: Keep = ROOT / "runs" / "generalisation",
    seeds: Seeds = 3,
) -> None:
    """Run what is missing, print and keep."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) if quick else keep_in
        corpora = write_corpora(assets, folder / "corpora")
        teacher = train_teacher(corpora["teacher"], folder, 8 if quick else 800)
        config = write(folder / "student.yaml", student_config(corpora, teacher))
        rows = measure(config, folder, range(1 if quick else seeds), QUICK if quick else {})
    report("generalisation", rows, [], keep=not quick, trained_on=TRAINED_ON)


def write_corpora(assets: Path, folder: Path) -> dict[str, Path]:
    """Write `teacher` and `train` to learn from, and the sets to evaluate on; return the files."""
    news = {
        split: [json.loads(line) for line in (assets / "bbc" / f"{split}.jsonl").open()]
        for split in ("train", "heldout")
    }
    known = {
        split: [each for each in found if each["category"] != LEFT_OUT]
        for split, found in news.items()
    }
    code = list(modules())
    half = len(code) // 2
    documents = {
        "teacher": [*news["train"], *code[:half]],
        "train": known["train"][:ARTICLES],
        "heldout": known["heldout"],
        "sport": [each for each in news["heldout"] if each["category"] == LEFT_OUT],
        "code": code[half:],
    }
    folder.mkdir(parents=True, exist_ok=True)
    paths = {name: folder / f"{name}.jsonl" for name in documents}
    for name, path in paths.items():
        lines = [
            json.dumps({"name": each["name"], "text": each["text"]}) for each in documents[name]
        ]
        # A file that is written again is another corpus to the runs that were kept.
        if not path.exists():
            path.write_text("\n".join(lines) + "\n")
    return paths


def modules() -> Iterator[dict[str, str]]:
    """Yield modules of the standard library, by name."""
    library = Path(sysconfig.get_paths()["stdlib"])
    for path in sorted(library.glob("*.py"))[:MODULES]:
        text = path.read_text(encoding="utf-8", errors="replace")
        yield {"name": path.name, "text": text[:MOST_CHARACTERS]}


def train_teacher(corpus: Path, folder: Path, steps: int) -> Path:
    """Train the teacher where it is missing, and return its folder."""
    config = {
        "name": "generalisation-teacher",
        "output": "unused",
        "data": {
            "train": _jsonl(corpus),
            "tokenizer": {"kind": "train", "vocab_size": 4096},
            "seq_len": 128,
        },
        "teacher": {
            "model": {"architecture": "gpt2", "options": _gpt2(layers=4, width=256)},
            "training": _training(steps, 1e-3),
        },
        "distill": {
            "student": {"teacher_layers": [0]},
            "training": {"steps": 1, "global_batch_size": 1},
        },
    }
    output = folder / "teacher"
    if not (output / "teacher" / "kdscale.json").exists():
        kdscale(write(folder / "teacher.yaml", config), output, {}, "--until", "teacher")
    return output / "teacher"


def student_config(corpora: dict[str, Path], teacher: Path) -> dict[str, Any]:
    """Return the config of the variant `plain`."""
    sets: dict[str, Any] = {name: _jsonl(corpora[name]) for name in (TRAINED_ON, "sport", "code")}
    return {
        "name": "generalisation",
        "output": "unused",
        "data": {
            "train": _jsonl(corpora["train"]),
            "evaluate": {**sets, "docs": {"kind": "python-docs", "limit": 100}},
            "tokenizer": {"kind": "teacher"},
            "seq_len": 128,
            "evaluation_sequences": 160,
        },
        "teacher": {"load": str(teacher)},
        "distill": {
            "student": {"model": {"architecture": "gpt2", "options": _gpt2(layers=2, width=128)}},
            "training": _training(600, 2e-3)
            | {"dropout": 0.0, "validate_every": 100, "checkpoint_every": 300},
            "baseline": False,
        },
    }


def measure(config: Path, folder: Path, seeds: range, settings: dict[str, Any]) -> list[Row]:
    """Return a row for each variant and set: its loss, its gain over `plain`, and its cost."""
    runs: dict[str, list[dict[str, Any]]] = {}
    for name, changes in VARIANTS.items():
        runs[name] = []
        for at, seed in enumerate(seeds):
            own = {**settings, **changes, "seed": seed}
            if name in CACHE_OF:
                own["cache.reuse"] = runs[CACHE_OF[name]][at]["cache"]["url"]
            runs[name].append(finished(config, folder / f"{name}-{seed}", own))

    def losses(name: str, domain: str) -> list[float]:
        return [run["models"]["student"]["domains"][domain]["loss"] for run in runs[name]]

    return [
        {
            "variant": name,
            "domain": domain,
            "loss": interval(losses(name, domain)),
            "gain": interval(
                [
                    p - own
                    for p, own in zip(losses("plain", domain), losses(name, domain), strict=True)
                ]
            ),
            "teacher_loss": found[0]["models"]["teacher"]["domains"][domain]["loss"],
            **cost(found, runs[CACHE_OF.get(name, name)]),
        }
        for name, found in runs.items()
        for domain in found[0]["models"]["student"]["domains"]
    ]


def cost(runs: Sequence[dict[str, Any]], captured: Sequence[dict[str, Any]]) -> Row:
    """Return size and mean seconds of `runs`, which learn from the caches of `captured`."""
    cache = runs[0]["cache"]
    return {
        "cache_rows": cache["rows"],
        "cache_bytes": cache["bytes"],
        "capture_seconds": mean(run["seconds"]["cache"] for run in captured),
        "distill_seconds": mean(run["seconds"]["distill"] for run in runs),
    }


def write(path: Path, config: dict[str, Any]) -> Path:
    """Write `config` as YAML and return its path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(config))
    return path


def _jsonl(path: Path) -> dict[str, str]:
    return {"kind": "jsonl", "path": str(path)}


def _training(steps: int, rate: float) -> dict[str, Any]:
    batch = {"global_batch_size": 16, "micro_batch_size": 8}
    return {"steps": steps, **batch, "optimiser": {"learning_rate": rate}}


def _gpt2(layers: int, width: int) -> dict[str, Any]:
    """Return options of an architecture that has dropouts to set."""
    return {"n_layer": layers, "n_embd": width, "n_head": 4, "n_positions": 128}


if __name__ == "__main__":
    typer.run(main)
