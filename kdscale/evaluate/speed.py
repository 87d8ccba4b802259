"""How fast models are beside each other: a batch, a single row, a generated text.

All models are measured in turns in one process on one device, so that what slows the machine down
meanwhile slows all of them; figures are medians over the turns, after a warm-up.
"""

import time
from collections import defaultdict
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import torch
from transformers import PreTrainedModel

from kdscale.config.evaluate import SpeedConfig
from kdscale.data.prepared import Prepared
from kdscale.evaluate.alone import write_text
from kdscale.evaluate.results import ModelSpeed, Speed
from kdscale.models.folder import ModelReference
from kdscale.models.forward import model_inputs, row_tensors
from kdscale.models.tasks import task_of
from kdscale.workers import Worker

# Forwards of a single row in a turn: enough of them for a 90th percentile.
_SINGLES = 5
PROMPT_TOKENS = 16

Action = Callable[[], object]


def measure_speed(
    models: Mapping[str, PreTrainedModel],
    references: Mapping[str, ModelReference],
    prepared: Prepared,
    config: SpeedConfig,
    worker: Worker,
) -> Speed:
    """Of `models`, on rows of the first evaluation set."""
    table = prepared.split(prepared.evaluation_sets[0])
    batch = row_tensors(table.take(np.arange(config.rows) % len(table)), worker.device)
    actions = {
        name: _actions(model, batch.ids, batch.segments, prepared, config.new_tokens)
        for name, model in models.items()
    }
    times, turns = _take_turns(actions, config, worker)
    found: dict[str, ModelSpeed] = {}
    for name, measured in times.items():
        row, text = measured["row"], measured.get("text")
        found[name] = {
            "bytes": _bytes(references[name]),
            "tokens_per_second": batch.ids.numel() / float(np.median(measured["batch"])),
            "row_seconds": float(np.median(row)),
            "row_seconds_p90": float(np.quantile(row, 0.9)),
        }
        if text is not None:
            found[name]["text_seconds"] = float(np.median(text))
            found[name]["text_seconds_p90"] = float(np.quantile(text, 0.9))
    is_gpu = worker.device.type == "cuda"
    return {
        "device": torch.cuda.get_device_name(worker.device) if is_gpu else "CPU",
        "dtype": str(worker.dtype).removeprefix("torch."),
        "threads": torch.get_num_threads(),
        "rows": len(batch.ids),
        "row_length": batch.ids.shape[1],
        "new_tokens": config.new_tokens,
        "turns": turns,
        "models": found,
    }


def _actions(
    model: PreTrainedModel,
    ids: torch.Tensor,
    segments: torch.Tensor,
    prepared: Prepared,
    new_tokens: int,
) -> dict[str, Action]:
    """What is timed of a model, by name. `ids` and `segments` are [B, T]."""
    batch = model_inputs(model, ids, segments)
    row = model_inputs(model, ids[:1], segments[:1])
    prompt = ids[:1, : min(PROMPT_TOKENS, ids.shape[1])]
    found: dict[str, Action] = {"batch": lambda: model(**batch), "row": lambda: model(**row)}
    if task_of(model.config) == "causal-lm":
        special, vocabulary = prepared.special_ids, prepared.vocab_size
        found["text"] = lambda: write_text(
            model, prompt, new_tokens, special, vocabulary, whole=True
        )
    return found


@torch.no_grad()
def _take_turns(
    actions: Mapping[str, Mapping[str, Action]], config: SpeedConfig, worker: Worker
) -> tuple[dict[str, dict[str, list[float]]], int]:
    """Seconds by model and action, and the turns that were taken."""
    times: dict[str, dict[str, list[float]]] = {name: defaultdict(list) for name in actions}
    for timed in actions.values():
        for act in timed.values():
            act()
    start, turns = time.perf_counter(), 0
    while turns < config.turns and (turns == 0 or time.perf_counter() - start < config.seconds):
        for name, timed in actions.items():
            for what, act in timed.items():
                for _ in range(_SINGLES if what == "row" else 1):
                    times[name][what].append(_seconds(act, worker.device))
                worker.beat(f"the speed of the {name}")
        turns += 1
    return times, turns


def _seconds(act: Action, device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    start = time.perf_counter()
    act()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start


def _bytes(reference: ModelReference) -> int | None:
    """Of the weights' files; None for a hub's model."""
    folder = Path(reference.local())
    files = list(folder.glob("*.safetensors"))
    return sum(file.stat().st_size for file in files) if files else None
