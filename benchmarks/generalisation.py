"""Does a student hold on domains that it was not trained on, and what helps?

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
import os
import platform
import sys
import sysconfig
import tempfile
from collections.abc import Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from statistics import mean
from typing import Any

import typer
import yaml

ROOT = Path(__file__).parents[1]
# Of a script only its own folder is on the path.
sys.path.insert(0, str(ROOT))

from benchmarks.finished import finished, run, spread  # noqa: E402  after the path is set

KEPT = ROOT / "benchmarks" / "results" / "generalisation.json"
LEFT_OUT = "sports"
TRAINED_ON = "heldout"
ARTICLES, MODULES = 300, 120
MOST_CHARACTERS = 20_000  # of a module: a few long ones are not to be most of the code
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
# What changes the student alone learns from the cache of the variant without it.
CACHE_OF = {"dropout": "plain", "both": "augment"}
QUICK = {"distill.training.steps": 4, "distill.training.validate_every": 4, "cache.sequences": 64}


def main(
    quick: bool = typer.Option(False, help="A few steps, to see that it works."),
    assets: Path = typer.Option(ROOT / "assets", help="Folder that assets.py wrote."),
    keep_in: Path = typer.Option(
        ROOT / "runs" / "generalisation", "--keep", help="Finished runs are kept here."
    ),
    seeds: int = typer.Option(3, min=1, help="Students of each variant."),
) -> None:
    """Make what is missing, print and keep."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) if quick else keep_in
        corpora = write_corpora(assets, folder / "corpora")
        teacher = train_teacher(corpora, folder, 8 if quick else 800)
        config = write(folder / "student.yaml", student_config(corpora, teacher))
        rows = measure(config, folder, range(1 if quick else seeds), QUICK if quick else {})
    found = {
        "benchmark": "generalisation",
        "machine": {"cpu": platform.machine(), "cores": os.cpu_count()},
        "versions": {name: version(name) for name in ("kdscale", "torch", "transformers")},
        "trained_on": TRAINED_ON,
        "rows": rows,
        "goals": [],
    }
    if not quick:
        KEPT.write_text(json.dumps(found, indent=1) + "\n")
    print(json.dumps(found))


def write_corpora(assets: Path, folder: Path) -> dict[str, Path]:
    """The files: `teacher` and `train` to learn from, and the sets to be evaluated on."""
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
    """Modules of the standard library, by name."""
    library = Path(sysconfig.get_paths()["stdlib"])
    for path in sorted(library.glob("*.py"))[:MODULES]:
        text = path.read_text(encoding="utf-8", errors="replace")
        yield {"name": path.name, "text": text[:MOST_CHARACTERS]}


def train_teacher(corpora: dict[str, Path], folder: Path, steps: int) -> Path:
    """Its folder."""
    config = {
        "name": "generalisation-teacher",
        "output": "unused",
        "data": {
            "train": _jsonl(corpora["teacher"]),
            "tokenizer": {"kind": "train", "vocab_size": 4096},
            "seq_len": 128,
        },
        "teacher": {
            "model": {"architecture": "gpt2", "options": _gpt2(layers=4, width=256)},
            "training": {
                "steps": steps,
                "global_batch_size": 16,
                "micro_batch_size": 8,
                "optimiser": {"learning_rate": 1e-3},
            },
        },
        "distill": {
            "student": {"teacher_layers": [0]},
            "training": {"steps": 1, "global_batch_size": 1},
        },
    }
    output = folder / "teacher"
    if not (output / "teacher" / "kdscale.json").exists():
        run(write(folder / "teacher.yaml", config), output, {}, "--until", "teacher")
    return output / "teacher"


def student_config(corpora: dict[str, Path], teacher: Path) -> dict[str, Any]:
    """Of the variant `plain`."""
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
            "training": {
                "steps": 600,
                "global_batch_size": 16,
                "micro_batch_size": 8,
                "dropout": 0.0,
                "optimiser": {"learning_rate": 2e-3},
                "validate_every": 100,
                "checkpoint_every": 300,
            },
            "baseline": False,
        },
    }


def measure(
    config: Path, folder: Path, seeds: range, settings: dict[str, Any]
) -> list[dict[str, Any]]:
    """A row for each variant and set: its loss, and what it is better by than `plain`, seed by
    seed; with the cost of the variant."""
    runs: dict[str, list[dict[str, Any]]] = {}
    for name, changes in VARIANTS.items():
        runs[name] = []
        for at, seed in enumerate(seeds):
            own = {**settings, **changes, "seed": seed}
            if name in CACHE_OF:
                own["cache.reuse"] = runs[CACHE_OF[name]][at]["cache"]["url"]
            runs[name].append(finished(config, folder / f"{name}-{seed}", own))
    rows = []
    for name, found in runs.items():
        for domain in found[0]["models"]["student"]["domains"]:
            losses, plain = (
                [run["models"]["student"]["domains"][domain]["loss"] for run in each]
                for each in (found, runs["plain"])
            )
            gains = [before - after for before, after in zip(plain, losses, strict=True)]
            rows.append(
                {
                    "variant": name,
                    "domain": domain,
                    "loss": spread(losses),
                    "gain": spread(gains),
                    "teacher_loss": found[0]["models"]["teacher"]["domains"][domain]["loss"],
                    **cost(found, runs[CACHE_OF.get(name, name)]),
                }
            )
    return rows


def cost(runs: Sequence[dict[str, Any]], captured: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """What `runs` took, which learn from the caches of `captured`; seconds are means."""
    cache = runs[0]["cache"]
    return {
        "cache_rows": cache["rows"],
        "cache_bytes": cache["bytes"],
        "capture_seconds": mean(run["seconds"]["cache"] for run in captured),
        "distill_seconds": mean(run["seconds"]["distill"] for run in runs),
    }


def write(path: Path, config: dict[str, Any]) -> Path:
    """`config` as YAML."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(config))
    return path


def _jsonl(path: Path) -> dict[str, str]:
    return {"kind": "jsonl", "path": str(path)}


def _gpt2(layers: int, width: int) -> dict[str, Any]:
    """An architecture that has dropouts to set."""
    return {"n_layer": layers, "n_embd": width, "n_head": 4, "n_positions": 128}


if __name__ == "__main__":
    typer.run(main)
