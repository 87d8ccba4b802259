"""A student that exists: what distilling brings over its start and over labels alone.

    python benchmarks/loaded_student.py [--quick] [--seeds 3] [--keep runs/loaded-student]

Runs jobs/configs/smollm2-cut.yaml, whose student is ten layers of SmolLM2-135M-Instruct that were
distilled on Python's standard library, and jobs/configs/smollm2-load.yaml up to its cache: the
teacher, trained further on BBC news, and what it says about them. From that cache the cut model
then learns with every seed, by all its weights (`full`) and by adapters (`lora`). Each run
evaluates it before and after, and its baseline, on held-out news and out of domain.

Seconds are those of the distill stage, student and baseline, the start of its workers included;
memory is the most that rank 0 of the student's training held, everything included.
"""

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import typer

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks import assets
from benchmarks.common import (
    ASSETS,
    CONFIGS,
    ROOT,
    Keep,
    Quick,
    Row,
    Seeds,
    finished,
    goal,
    interval,
    kdscale,
    log,
    report,
    spread,
)

RANK = 16
VARIANTS: dict[str, dict[str, Any]] = {
    "full": {},
    "lora": {
        "distill.student.lora": {"r": RANK, "alpha": 2 * RANK},
        "distill.training.optimiser.learning_rate": 2e-3,
    },
}
MODELS = ("before", "baseline", "student")
QUICK = {
    "data.evaluation_sequences": 4,
    "cache.sequences": 16,
    "cache.sequences_per_shard": 8,
    "cache.sequences_per_chunk": 8,
    "distill.training.steps": 2,
    "distill.training.global_batch_size": 4,
}
QUICK_TEACHER = {"teacher.training.steps": 2, "teacher.training.global_batch_size": 4}


def main(
    quick: Quick = False, seeds: Seeds = 3, keep_in: Keep = ROOT / "runs" / "loaded-student"
) -> None:
    """Run what is missing, print and keep."""
    assets.make_all(ASSETS)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) if quick else keep_in.absolute()
        runs = run_all(folder, range(1 if quick else seeds), QUICK if quick else {}, quick)
    rows = [
        row_of(variant, domain, found)
        for variant, found in runs.items()
        for domain in found[0]["results"]["gap_recovered"]
    ]
    report("loaded_student", rows, goals_of(rows), keep=not quick, costs=costs_of(runs))


def run_all(
    folder: Path, seeds: range, settings: dict[str, Any], quick: bool
) -> dict[str, list[dict[str, Any]]]:
    """Return {variant: [{"results", "metrics"} of each seed]} of runs in `folder`, made if missing.

    Seed by seed, so that an interrupted benchmark has whole comparisons.
    """
    finished(CONFIGS / "smollm2-cut.yaml", folder / "cut", settings)
    config, shared = CONFIGS / "smollm2-load.yaml", folder / "shared"
    settings = {**settings, "distill.student.load": str(folder / "cut" / "student")}
    teacher = QUICK_TEACHER if quick else {}
    kdscale(config, shared, {**settings, **teacher}, "--until", "cache")
    (cache,) = (shared / "cache").iterdir()
    settings |= {
        "teacher.load": str(shared / "teacher"),
        "teacher.training": None,
        "cache.reuse": str(cache),
    }
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in VARIANTS}
    for seed in seeds:
        for name, changes in VARIANTS.items():
            log(f"{name}, seed {seed}")
            output = folder / f"{name}-{seed}"
            results = finished(config, output, {**settings, **changes, "seed": seed})
            lines = (output / "metrics" / "distill.jsonl").read_text().splitlines()
            runs[name].append({"results": results, "metrics": [json.loads(each) for each in lines]})
    return runs


def row_of(variant: str, domain: str, runs: list[dict[str, Any]]) -> Row:
    """Return the losses of a variant's runs on a domain, in nats, and the student's gains."""
    losses = {
        model: [run["results"]["models"][model]["domains"][domain]["loss"] for run in runs]
        for model in ("teacher", *MODELS)
    }
    return {
        "variant": variant,
        "domain": domain,
        "teacher_loss": losses["teacher"][0],
        **{f"{model}_loss": interval(losses[model]) for model in MODELS},
        **{
            f"gain_over_{model}": interval(
                [a - b for a, b in zip(losses[model], losses["student"], strict=True)]
            )
            for model in ("before", "baseline")
        },
    }


def costs_of(runs: dict[str, list[dict[str, Any]]]) -> list[Row]:
    """Return what each variant costs: seconds, tokens/s, and memory of its student's training."""

    def most(run: dict[str, Any], figure: str) -> float:
        return max(line[figure] for line in run["metrics"] if figure in line)

    return [
        {
            "variant": name,
            "distill_seconds": spread([run["results"]["seconds"]["distill"] for run in found]),
            "tokens_per_second": spread([most(run, "tokens_per_second") for run in found]),
            "memory_gib": spread([most(run, "memory_gib") for run in found]),
        }
        for name, found in runs.items()
    ]


def goals_of(rows: list[Row]) -> list[Row]:
    """Return goals: on held-out news each student beats its start and its baseline."""
    return [
        goal(f"{row['variant']}_gain_over_{model}_heldout", row[f"gain_over_{model}"]["mean"], ">0")
        for row in rows
        if row["domain"] == "heldout"
        for model in ("before", "baseline")
    ]


if __name__ == "__main__":
    typer.run(main)
