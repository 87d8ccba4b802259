"""Runs a teacher over a few rows to find out which of its dimensions are active.

Hooks read the activations that Minitron (arXiv:2407.14679) ranks by: outputs of the norms, inputs
of the MLPs' last projections, outputs of the attention heads. All ranks read the same rows, and
rank 0's result counts, so that any number of ranks keeps the same dimensions.
"""

import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from kdscale.config.initial import WidthConfig
from kdscale.config.training import ZeroConfig
from kdscale.distributed.rank import Rank
from kdscale.models.chunked_classifier import computed_tokens
from kdscale.models.forward import model_inputs, row_tensors
from kdscale.models.init.families import Family, family_of
from kdscale.models.init.width import WidthStatistics
from kdscale.models.sharded import load_teacher
from kdscale.models.tasks import task_of
from kdscale.types import Rows

_ROWS_AT_ONCE = 4

Strength = Callable[[torch.Tensor], torch.Tensor]


def calibrate(
    width: WidthConfig, teacher: str | Path, revision: str | None, rows: Rows, worker: Rank
) -> WidthStatistics:
    """Statistics of the teacher in a folder or of a hub name over `rows`. Collective."""
    zero = ZeroConfig.for_teacher(width.teacher_sharding)
    model = load_teacher(teacher, worker, zero, revision)
    statistics = measure(model, rows, worker.device)
    del model
    gc.collect()
    result: WidthStatistics = worker.broadcast(statistics)
    return result


@torch.no_grad()
def measure(model: torch.nn.Module, rows: Rows, device: torch.device) -> WidthStatistics:
    """Statistics of a `model` of a known family (or a ZeRO engine around one) over the tokens of
    `rows` that are no padding. The model is in evaluation mode. Collective where it is sharded."""
    bare: Any = getattr(model, "module", model)
    layers = len(_layers(bare, family_of(bare.config)))
    # The head over all positions would cost as much as some layers and tell nothing.
    short = {"logits_to_keep": 1} if task_of(bare.config) == "causal-lm" else {}
    with _recorder(model) as recorder:
        for first in range(0, len(rows), _ROWS_AT_ONCE):
            part = rows.take(np.arange(first, min(first + _ROWS_AT_ONCE, len(rows))))
            batch = row_tensors(part, device)
            recorder.counted = computed_tokens(bare.config, batch.segments != 0)
            model(**model_inputs(model, batch.ids, batch.segments), **short)
            recorder.tokens += int(recorder.counted.sum())

    def mean(*key: Any) -> np.ndarray:
        return recorder.sums[key].cpu().numpy() / recorder.tokens

    channels = [mean("norm", i, 1) + mean("norm", i, 2) for i in range(layers)]
    return WidthStatistics(
        channels=np.stack([*channels, mean("norm", layers, 1)]),
        neurons=np.stack([mean("neurons", i) for i in range(layers)]),
        heads=np.stack([mean("heads", i) for i in range(layers)]),
    )


class _Recorder:
    """Sums over tokens, float64, by what they are of."""

    def __init__(self) -> None:
        self.sums: dict[tuple[Any, ...], torch.Tensor] = {}
        self.tokens = 0
        self.counted = torch.empty(0)  # [B, T] bool: tokens of the present forward that count

    def add(self, key: tuple[Any, ...], strength: Strength, activation: torch.Tensor) -> None:
        """`activation` is [B, T, ...]."""
        found = strength(activation[self.counted].float()).sum(dim=0).double()
        self.sums[key] = self.sums[key] + found if key in self.sums else found


@contextmanager
def _recorder(model: torch.nn.Module) -> Iterator[_Recorder]:
    """A recorder that hears every forward of `model` while the context is open."""
    recorder, handles = _Recorder(), []
    bare: Any = getattr(model, "module", model)
    family = family_of(bare.config)
    layers = _layers(bare, family)
    first, second = family.norms

    def on_output(module: torch.nn.Module, key: tuple[Any, ...]) -> None:
        def hook(_: torch.nn.Module, inputs: Any, output: torch.Tensor) -> None:
            recorder.add(key, torch.abs, output)

        handles.append(module.register_forward_hook(hook))

    def on_input(module: torch.nn.Module, key: tuple[Any, ...], strength: Strength) -> None:
        def hook(_: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
            recorder.add(key, strength, inputs[0])

        handles.append(module.register_forward_pre_hook(hook))

    def head_norms(outputs: torch.Tensor) -> torch.Tensor:
        heads = bare.config.num_attention_heads
        return outputs.unflatten(-1, (heads, -1)).norm(dim=-1)

    for i, layer in enumerate(layers):
        on_output(layer.get_submodule(first), ("norm", i, 1))
        on_output(layer.get_submodule(second), ("norm", i, 2))
        on_input(layer.get_submodule(family.mlp_output), ("neurons", i), torch.abs)
        on_input(layer.get_submodule(family.attention_output), ("heads", i), head_norms)
    last = layers[-1].get_submodule(second)
    if family.final_norm is not None:
        last = bare.base_model.get_submodule(family.final_norm)
    on_output(last, ("norm", len(layers), 1))
    try:
        yield recorder
    finally:
        for handle in handles:
            handle.remove()


def _layers(bare: Any, family: Family) -> Any:
    return bare.base_model.get_submodule(family.layers)
