"""Cost of a masked language model where 15 % of the positions count: kdscale over transformers.

    python benchmarks/masked_lm_step.py [--quick] [--repeats 7]

8 rows of 128 ids of BERT's vocabulary, float32 on one thread. Variants take turns on one model:

    step     forward and backward, without optimiser. kdscale has the last linear map and its loss
             in one, at the positions that count; transformers its own loss of `labels`; `logits` is
             kdscale where all logits are made, as with a head that it does not know
    targets  the logits of the positions that count, without gradients, as a capture and an
             evaluation take them: kdscale's, and those of transformers' forward

All variants must give the same. The last line is one JSON object, also kept in
results/masked_lm_step.json; --quick takes a small model once and keeps nothing.
"""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import typer

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.common import Quick, Row, Turns, ratios, report, spread, take_turns
from kdscale.config.teacher import ModelConfig
from kdscale.losses.fused import head_and_loss
from kdscale.models.forward import RowTensors, target_logits
from kdscale.models.head import HeadInput, ModelWithHead
from kdscale.models.load import build_model, make_config
from kdscale.models.tasks import TaskSpec

VOCABULARY, ROWS, LENGTH, MASKED = 30_522, 8, 128, 0.15
SHAPES = {"MiniLM": (6, 384, 12), "DistilBERT": (6, 768, 12)}  # layers, width, heads
QUICK_SHAPES = {"small": (1, 64, 2)}
TOKENS = {"bos_token_id": 101, "eos_token_id": 102, "pad_token_id": 0}
_IGNORED = -100  # by transformers' loss


def main(quick: Quick = False, repeats: Turns = 7) -> None:
    """Measure, print and keep."""
    torch.set_num_threads(1)
    shapes = QUICK_SHAPES if quick else SHAPES
    repeats = 1 if quick else repeats
    rows = [row for name, shape in shapes.items() for row in measure(name, *shape, repeats)]
    report("masked_lm_step", rows, [], keep=not quick, threads=1)


def measure(name: str, layers: int, width: int, heads: int, repeats: int) -> list[dict[str, Any]]:
    """Return the rows of both comparisons at one shape."""
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


def compare(variants: dict[str, Callable[[], torch.Tensor]], repeats: int) -> Row:
    """Return the median seconds of every variant, and the seconds of each over those of kdscale.

    AssertionError where they do not compute the same.
    """
    results = [variant() for variant in variants.values()]
    for result in results[1:]:
        torch.testing.assert_close(result, results[0], rtol=1e-4, atol=1e-4)
    turns = take_turns(variants, repeats)
    return {
        "seconds": {name: spread([turn[name] for turn in turns])["median"] for name in variants},
        "times_as_fast": {
            name: spread(ratios(turns, name, "kdscale")) for name in variants if name != "kdscale"
        },
    }


def ours(model: ModelWithHead, rows: RowTensors, head_input: HeadInput) -> torch.Tensor:
    """Take a step of kdscale and return the mean loss."""
    model.zero_grad()
    model._head_input = head_input
    hidden = model.hidden(rows.ids, rows.segments)[rows.mask]
    objective = head_and_loss(hidden, model.head, rows.labels[rows.mask]).objective
    loss = objective / int(rows.mask.sum())
    loss.backward()
    return loss.detach()


def theirs(model: ModelWithHead, rows: RowTensors) -> torch.Tensor:
    """Take a step of transformers and return the mean loss."""
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
        # All variants must compute the same.
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


if __name__ == "__main__":
    typer.run(main)
