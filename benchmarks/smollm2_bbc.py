"""SmolLM2-135M-Instruct distilled on BBC news: is the student better than its baseline?

    python benchmarks/smollm2_bbc.py [--quick]

Fetches the assets, runs jobs/configs/smollm2-bbc.yaml and keeps its results.json as
results/smollm2-bbc.json. --quick takes a few steps and keeps nothing. The last line is one JSON
object.
"""

import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import typer

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks import assets
from benchmarks.common import ASSETS, CONFIGS, RESULTS, ROOT, Quick, finished, goal, report

OUTPUT = ROOT / "runs" / "smollm2-bbc"
QUICK = {
    "data.evaluation_sequences": 4,
    "cache.sequences": 16,
    "cache.sequences_per_shard": 8,
    "distill.training.steps": 4,
    "distill.training.global_batch_size": 4,
}


def main(quick: Quick = False) -> None:
    """Fetch, run, keep, and print the figures."""
    started = time.perf_counter()
    assets.make_all(ASSETS)
    with tempfile.TemporaryDirectory() as scratch:
        output = Path(scratch) / "run" if quick else OUTPUT
        results = finished(CONFIGS / "smollm2-bbc.yaml", output, QUICK if quick else {})
    if not quick:
        text = json.dumps({**results, "output": str(OUTPUT)}, indent=1)
        (RESULTS / "smollm2-bbc.json").write_text(text.replace(f"{ROOT}/", "") + "\n")
    student, baseline = (results["models"][name]["domains"] for name in ("student", "baseline"))
    goals = [
        goal(
            f"{metric}_student_over_baseline_{domain}",
            student[domain][metric] / baseline[domain][metric],
            ">1" if metric == "agreement_top1" else "<1",
        )
        for domain in student
        for metric in ("loss", "kl_teacher_student", "agreement_top1")
    ]
    seconds = round(time.perf_counter() - started)
    report("smollm2_bbc", rows_of(results), goals, keep=False, seconds=seconds)


def rows_of(results: dict[str, Any]) -> list[dict[str, Any]]:
    """Return one row for each model and domain."""
    return [
        {"model": name, "domain": domain, **{k: v for k, v in scores.items() if k != "calibration"}}
        for name, model in results["models"].items()
        for domain, scores in model["domains"].items()
    ]


if __name__ == "__main__":
    typer.run(main)
