"""Speed of models side by side: a batch, a single sequence, a generated text.

All models are measured in turns in one process on one device, so that what slows the machine down
meanwhile slows all of them; figures are medians over the turns, after a warm-up. The factor over
the teacher has an interval over the turns, each of which compares the two.
"""

import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from transformers import PreTrainedModel

from kdscale.config.evaluate import SpeedConfig
from kdscale.data.rows.prepared import Prepared
from kdscale.distributed.rank import Rank
from kdscale.evaluate.intervals import median_interval
from kdscale.evaluate.schema import ModelSpeed, Speed
from kdscale.evaluate.single_device import write_text
from kdscale.models.adapter_folder import AdapterFolder
from kdscale.models.forward import RowTensors, model_inputs, row_tensors
from kdscale.models.hf_folder import ModelReference, loadable
from kdscale.models.tasks import task_of

# Forwards of a single sequence in a turn: enough of them for a 90th percentile.
SINGLES = 5
LATENCY_TURNS = 5
PROMPT_TOKENS = 16

Action = Callable[[], object]


def measure_speed(
    models: Mapping[str, PreTrainedModel],
    references: Mapping[str, ModelReference],
    data: Mapping[str, Prepared],
    config: SpeedConfig,
    worker: Rank,
) -> Speed:
    """Measure `models` on sequences of the first evaluation set.

    `data` is what each model reads: the same text, in its own tokens.
    """
    batches_of = {
        each: _first_sequences(each, config.sequences, worker)
        for each in dict.fromkeys(data.values())
    }
    actions = {
        name: _actions(model, batches_of[data[name]], data[name], config.new_tokens)
        for name, model in models.items()
    }
    batches = _take_turns(_only(actions, "batch"), config.turns, config.seconds / 2, worker)
    others = _take_turns(
        _only(actions, "row", "text"), min(config.turns, LATENCY_TURNS), config.seconds / 2, worker
    )
    teacher = batches["teacher"]["batch"] if "teacher" in batches else None
    is_gpu = worker.device.type == "cuda"
    return {
        "device": torch.cuda.get_device_name(worker.device) if is_gpu else "CPU",
        "dtype": str(worker.dtype).removeprefix("torch."),
        "threads": torch.get_num_threads(),
        "rows": config.sequences,
        "seq_len": max((data[name].seq_len for name in models), default=0),
        "new_tokens": config.new_tokens,
        "turns": max((len(timed["batch"]) for timed in batches.values()), default=0),
        "latency_turns": max((len(timed["row"]) for timed in others.values()), default=0)
        // SINGLES,
        "models": {
            name: _figures(
                {**batches[name], **others[name]},
                batches_of[data[name]].ids.numel(),
                _bytes(references[name]),
                None if name == "teacher" else teacher,
            )
            for name in models
        },
    }


def _first_sequences(prepared: Prepared, count: int, worker: Rank) -> RowTensors:
    table = prepared.split(prepared.evaluation_sets[0])
    return row_tensors(table.take(np.arange(count) % len(table)), worker.device)


def _figures(
    times: Mapping[str, Sequence[float]],
    tokens: int,
    size: int | None,
    teacher: Sequence[float] | None,
) -> ModelSpeed:
    """Return the figures of a model that took `times`, for batches of so many tokens.

    `teacher` are the teacher's seconds for the same batches.
    """
    seconds = np.array(times["batch"])
    found: ModelSpeed = {
        "bytes": size,
        "tokens_per_second": tokens / float(np.median(seconds)),
        "row_seconds": float(np.median(times["row"])),
        "row_seconds_p90": float(np.quantile(times["row"], 0.9)),
    }
    if "text" in times:
        found["text_seconds"] = float(np.median(times["text"]))
        found["text_seconds_p90"] = float(np.quantile(times["text"], 0.9))
    if teacher is not None:
        ratios = np.array(teacher) / seconds
        found["times_teacher"] = float(np.median(ratios))
        found["times_teacher_interval"] = median_interval(ratios)
    return found


def _only(actions: Mapping[str, Mapping[str, Action]], *names: str) -> dict[str, dict[str, Action]]:
    """Return each model's actions of these names."""
    return {
        model: {name: act for name, act in acts.items() if name in names}
        for model, acts in actions.items()
    }


def _actions(
    model: PreTrainedModel, rows: RowTensors, prepared: Prepared, new_tokens: int
) -> dict[str, Action]:
    """Return the timed actions of a model by name, on `rows` in its tokens."""
    ids, segments = rows.ids, rows.segments
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
    actions: Mapping[str, Mapping[str, Action]], most: int, seconds: float, worker: Rank
) -> dict[str, dict[str, list[float]]]:
    """Return seconds by model and action.

    Every second turn goes through the models backwards, so that none always follows the same other.
    No turn but the first begins after so many `seconds`.
    """
    times: dict[str, dict[str, list[float]]] = {name: defaultdict(list) for name in actions}
    for timed in actions.values():
        for act in timed.values():
            act()
    start = time.perf_counter()
    for turn in range(most):
        if turn > 0 and time.perf_counter() - start >= seconds:
            break
        for name in list(actions)[:: 1 if turn % 2 == 0 else -1]:
            for what, act in actions[name].items():
                for _ in range(SINGLES if what == "row" else 1):
                    times[name][what].append(_seconds(act, worker.device))
                worker.beat(f"the speed of the {name}")
    return times


def _seconds(act: Action, device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    start = time.perf_counter()
    act()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start


def _bytes(reference: ModelReference) -> int | None:
    """Return the bytes of the weights' files; None for a hub's model.

    Of adapters those of their base, which are as many as when they are merged.
    """
    folder = Path(reference.local())
    adapter = AdapterFolder.find(folder)
    if adapter is not None:
        folder = Path(loadable(adapter.base))
    files = list(folder.glob("*.safetensors"))
    return sum(file.stat().st_size for file in files) if files else None
