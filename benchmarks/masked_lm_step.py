"""What a masked language model costs where 15 % of the positions count: kdscale over transformers.

    python benchmarks/masked_lm_step.py [--quick] [--repeats 7]

8 rows of 128 ids of BERT's vocabulary, float32 on one thread. Arms take turns on the same model:

    step     forward and backward, without optimiser. kdscale has the last linear map and its loss
             in one, at the positions that count; transformers its own loss of `labels`; `logits` is
             kdscale where all logits are made, as with a head that it does not know
    targets  the logits of the positions that count, without gradients, as a capture and an
             evaluation take them: kdscale's, and those of transformers' forward

All arms must give the same. The last line is one JSON object, also kept in
results/masked_lm_step.json; --quick takes a small model once and keeps nothing.
"""

import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import typer

ROOT = Path(__file__).parents[1]
# Of a script only its own folder is on the path.
sys.path.insert(0, str(ROOT))

from kdscale.config.teacher import ModelConfig  # noqa: E402  after the path is set
from kdscale.losses.fused import head_and_loss  # noqa: E402
from kdscale.models.forward import RowTensors, target_logits  # noqa: E402
from kdscale.models.head import HeadInput, ModelWithHead  # noqa: E402
from kdscale.models.load import build_model, make_config  # noqa: E402
from kdscale.models.tasks import TaskSpec  # noqa: E402

KEPT = ROOT / "benchmarks" / "results" / "masked_lm_step.json"
VOCABULARY, ROWS, LENGTH, MASKED = 30_522, 8, 128, 0.15
SHAPES = {"MiniLM": (6, 384, 12), "DistilBERT": (6, 768, 12)}  # layers, width, heads
QUICK_SHAPES = {"small": (1, 64, 2)}
TOKENS = {"bos_token_id": 101, "eos_token_id": 102, "pad_token_id": 0}
_IGNORED = -100  # by transformers' loss


def main(
    quick: bool = typer.Option(False, help="A small model once, to see that it works."),
    repeats: int = typer.Option(7, min=1, help="Measured turns of each arm."),
) -> None:
    """Measure, print and keep."""
    torch.set_num_threads(1)
    shapes = QUICK_SHAPES if quick else SHAPES
    repeats = 1 if quick else repeats
    rows = [row for name, shape in shapes.items() for row in measure(name, *shape, repeats)]
    found = {
        "benchmark": "masked_lm_step",
        "machine": {"cpu": platform.machine(), "cores": os.cpu_count(), "threads": 1},
        "versions": {name: version(name) for name in ("kdscale", "torch", "transformers")},
        "rows": rows,
        "goals": [],
    }
    if not quick:
        KEPT.write_text(json.dumps(found, indent=1) + "\n")
    print(json.dumps(found))


def measure(name: str, layers: int, width: int, heads: int, repeats: int) -> list[dict[str, Any]]:
    """Both comparisons at one shape."""
    model = ModelWithHead(_bert(layers, width, heads), VOCABULARY)
    model(ModelWithHead.detect_head, torch.device("cpu"))
    rows = _rows()
    step = {
        "kdscale": lambda: ours(model, rows, "projection"),
        "logits": lambda: ours(model, rows, "logits"),
        "transformers": lambda: theirs(model, rows),
    }
    targets = {
        "kdscale": lambda: target_logits(model.model, rows, VOCABULARY),
        "transformers": lambda: model.model(input_ids=rows.ids).logits[rows.mask],
    }
    found = [("step", compare(step, repeats))]
    with torch.no_grad():
        found.append(("targets", compare(targets, repeats)))
    return [{"shape": name, "of": of, **figures} for of, figures in found]


def compare(arms: dict[str, Callable[[], torch.Tensor]], repeats: int) -> dict[str, Any]:
    """Median seconds of every arm, and how many times as fast as the others kdscale is: the median
    over turns, the least and the most."""
    results = [arm() for arm in arms.values()]
    for result in results[1:]:
        torch.testing.assert_close(result, results[0], rtol=1e-4, atol=1e-4)
    turns = [{name: _seconds(arm) for name, arm in arms.items()} for _ in range(repeats)]
    return {
        "seconds": {name: statistics.median(turn[name] for turn in turns) for name in arms},
        "times_as_fast": {
            name: _spread([turn[name] / turn["kdscale"] for turn in turns])
            for name in arms
            if name != "kdscale"
        },
    }


def ours(model: ModelWithHead, rows: RowTensors, head_input: HeadInput) -> torch.Tensor:
    """A step of kdscale; the mean loss."""
    model.zero_grad()
    model._head_input = head_input
    hidden = model.hidden(rows.ids, rows.segments)[rows.mask]
    objective = head_and_loss(hidden, model.head, rows.labels[rows.mask]).objective
    loss = objective / int(rows.mask.sum())
    loss.backward()
    return loss.detach()


def theirs(model: ModelWithHead, rows: RowTensors) -> torch.Tensor:
    """A step of transformers; the mean loss."""
    model.zero_grad()
    labels = rows.labels.masked_fill(~rows.mask, _IGNORED)
    loss: torch.Tensor = model.model(input_ids=rows.ids, labels=labels).loss
    loss.backward()
    return loss.detach()


def _bert(layers: int, width: int, heads: int) -> Any:
    options = {
        "hidden_size": width,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "intermediate_size": 4 * width,
        # The arms must compute the same.
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
    }
    described = ModelConfig(architecture="bert", options=options)
    return build_model(
        make_config(described, VOCABULARY, TOKENS, LENGTH, TaskSpec("masked-lm")), seed=0
    )


def _rows() -> RowTensors:
    generator = torch.Generator().manual_seed(0)
    ids, labels = torch.randint(VOCABULARY, (2, ROWS, LENGTH), generator=generator)
    mask = torch.rand(ROWS, LENGTH, generator=generator) < MASKED
    return RowTensors(ids, torch.ones_like(ids), mask, labels)


def _seconds(arm: Callable[[], Any]) -> float:
    started = time.perf_counter()
    arm()
    return time.perf_counter() - started


def _spread(values: list[float]) -> dict[str, float]:
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


if __name__ == "__main__":
    typer.run(main)
