"""DistilBERT's recipe on a small encoder: is the student better than its baseline?

    python benchmarks/assets.py
    python benchmarks/masked_lm.py [--quick]

jobs/configs/minilm-mlm.yaml: all-MiniLM-L6-v2 learns to guess masked words of BBC news, and a
student of three of its six layers learns from it by masked-LM loss, KL of the logits and cosine of
the hidden states (Sanh et al., arXiv:1910.01108). The baseline has the labels alone. The last line
is one JSON object, also kept in results/masked_lm.json; --quick takes a few steps, keeping nothing.
"""

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import typer

ROOT = Path(__file__).parents[1]
# Of a script only its own folder is on the path.
sys.path.insert(0, str(ROOT))

from benchmarks.finished import finished  # noqa: E402  after the path is set

CONFIG = ROOT / "jobs" / "configs" / "minilm-mlm.yaml"
KEPT = ROOT / "benchmarks" / "results" / "masked_lm.json"
SCORES = ("loss", "kl_teacher_student", "agreement_top1", "ece")
QUICK = {
    "teacher.training.steps": 2,
    "cache.sequences": 64,
    "distill.training.steps": 2,
    "data.evaluation_sequences": 16,
}


def main(
    quick: bool = typer.Option(False, help="A few steps, to see that it works."),
    keep_in: Path = typer.Option(
        ROOT / "runs" / "minilm-mlm", "--keep", help="The run is kept here."
    ),
) -> None:
    """Make what is missing, print and keep."""
    with tempfile.TemporaryDirectory() as scratch:
        output = Path(scratch) if quick else keep_in
        results = finished(CONFIG, output, QUICK if quick else {})
    found = figures(results)
    if not quick:
        KEPT.write_text(json.dumps(found, indent=1) + "\n")
    print(json.dumps(found))


def figures(results: dict[str, Any]) -> dict[str, Any]:
    """A row for each model and set; the goals compare the student with its baseline."""
    models = results["models"]
    rows = [
        {
            "model": name,
            "parameters": model["parameters"],
            "domain": domain,
            **{score: scores.get(score) for score in SCORES},
        }
        for name, model in models.items()
        for domain, scores in model["domains"].items()
    ]
    student, baseline = (models[name]["domains"] for name in ("student", "baseline"))
    return {
        "benchmark": "masked_lm",
        "machine": results["hardware"],
        "versions": results["versions"],
        "rows": rows,
        "goals": [
            {
                "name": f"loss_over_baseline_{domain}",
                "value": student[domain]["loss"] / baseline[domain]["loss"],
                "goal": "<1",
            }
            for domain in student
        ],
    }


if __name__ == "__main__":
    typer.run(main)
