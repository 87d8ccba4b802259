"""Distil SmolLM2-135M-Instruct on BBC news: is the student better than its baseline?

python benchmarks/smollm2_bbc.py [--quick]

Fetches the assets, runs jobs/configs/smollm2-bbc.yaml and keeps its results.json as
benchmarks/results/smollm2-bbc.json. --quick takes a few steps, to see that everything works, and
keeps nothing. The last line is one JSON object.
"""

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import typer

ROOT = Path(__file__).parents[1]
CONFIG = ROOT / "jobs" / "configs" / "smollm2-bbc.yaml"
KEPT = ROOT / "benchmarks" / "results" / "smollm2-bbc.json"
QUICK = (
    "output=runs/smollm2-bbc-quick",
    "data.evaluation_sequences=4",
    "cache.sequences=16",
    "cache.sequences_per_shard=8",
    "distill.training.steps=4",
    "distill.training.global_batch_size=4",
)


def main(quick: bool = typer.Option(False, help="A few steps, to see that it works.")) -> None:
    """Fetch, run, keep, and print the figures."""
    started = time.perf_counter()
    program = Path(sys.executable).with_name("kdscale")
    overrides = [part for override in (QUICK if quick else ()) for part in ("--set", override)]
    for command in (
        [sys.executable, str(ROOT / "benchmarks" / "assets.py")],
        [str(program), "run", str(CONFIG), *overrides],
    ):
        subprocess.run(command, cwd=ROOT, check=True)
    output = ROOT / "runs" / ("smollm2-bbc-quick" if quick else "smollm2-bbc")
    results = json.loads((output / "results.json").read_text())
    if not quick:
        kept = {**results, "output": str(output.relative_to(ROOT))}
        KEPT.parent.mkdir(exist_ok=True)
        KEPT.write_text(json.dumps(kept, indent=1) + "\n")
    print(json.dumps(figures(results, time.perf_counter() - started)))


def figures(results: dict[str, Any], seconds: float) -> dict[str, Any]:
    """A row for each model and domain; the goals compare the student with its baseline."""
    rows = [
        {"model": name, "domain": domain, **{k: v for k, v in scores.items() if k != "calibration"}}
        for name, model in results["models"].items()
        for domain, scores in model["domains"].items()
    ]
    student, baseline = (results["models"][name]["domains"] for name in ("student", "baseline"))
    goals = [
        {
            "name": f"{metric}_student_over_baseline_{domain}",
            "value": student[domain][metric] / baseline[domain][metric],
            "goal": ">1" if metric == "agreement_top1" else "<1",
        }
        for domain in student
        for metric in ("loss", "kl_teacher_student", "agreement_top1")
    ]
    return {
        "benchmark": "smollm2_bbc",
        "machine": results["hardware"],
        "versions": results["versions"],
        "seconds": round(seconds),
        "rows": rows,
        "goals": goals,
    }


if __name__ == "__main__":
    typer.run(main)
