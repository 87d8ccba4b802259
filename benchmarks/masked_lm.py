"""DistilBERT's recipe on a small encoder: is the student better than its baseline?

    python benchmarks/assets.py
    python benchmarks/masked_lm.py [--quick]

jobs/configs/minilm-mlm.yaml: all-MiniLM-L6-v2 learns to guess masked words of BBC news, and a
student of three of its six layers learns from it by masked-LM loss, KL of the logits and cosine of
the hidden states (Sanh et al., arXiv:1910.01108). The baseline has the labels alone. The last line
is one JSON object, also kept in results/masked_lm.json; --quick takes a few steps, keeping nothing.
"""

import sys
import tempfile
from pathlib import Path

import typer

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.common import CONFIGS, ROOT, Keep, Quick, finished, goal, report

SCORES = ("loss", "kl_teacher_student", "agreement_top1", "ece")
QUICK = {
    "teacher.training.steps": 2,
    "cache.sequences": 64,
    "distill.training.steps": 2,
    "data.evaluation_sequences": 16,
}


def main(quick: Quick = False, keep_in: Keep = ROOT / "runs" / "minilm-mlm") -> None:
    """Run what is missing, print and keep."""
    with tempfile.TemporaryDirectory() as scratch:
        output = Path(scratch) if quick else keep_in
        models = finished(CONFIGS / "minilm-mlm.yaml", output, QUICK if quick else {})["models"]
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
    goals = [
        goal(
            f"loss_over_baseline_{domain}", student[domain]["loss"] / baseline[domain]["loss"], "<1"
        )
        for domain in student
    ]
    report("masked_lm", rows, goals, keep=not quick)


if __name__ == "__main__":
    typer.run(main)
