"""Calibration: run a model over a few sequences to find out which dimensions are active.

Hooks read the activations that Minitron (arXiv:2407.14679) ranks by: outputs of the norms, inputs
of the MLPs' last projections, outputs of the attention heads. All ranks read the same sequences,
and rank 0's result counts, so that any number of ranks keeps the same dimensions.
"""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from kdscale.config.initial import WidthConfig
from kdscale.config.training import ZeroConfig
from kdscale.distributed.rank import Rank
from kdscale.models.chunked_classifier import computed_tokens
from kdscale.models.forward import model_inputs, row_tensors, unwrapped
from kdscale.models.init.families import family_of
from kdscale.models.init.width import WidthStatistics
from kdscale.models.load import load_model
from kdscale.models.release import release
from kdscale.models.sharded import place_teacher
from kdscale.models.tasks import task_of
from kdscale.types import Rows

_ROWS_AT_ONCE = 4

Strength = Callable[[torch.Tensor], torch.Tensor]


def calibrate(
    width: WidthConfig, folder: str | Path, further: Any | None, rows: Rows, worker: Rank
) -> WidthStatistics:
    """Return statistics of the model in `folder` over `rows`. Collective.

    `further` is the transformers config of one that may lack tensors, such as a task's head.
    """
    zero = ZeroConfig.for_teacher(width.teacher_sharding)
    model = place_teacher(
        lambda: load_model(folder, worker.dtype, config=copy.deepcopy(further)), worker, zero
    )
    statistics = measure(model, rows, worker.device)
    release(model)
    result: WidthStatistics = worker.broadcast(statistics)
    return result


@torch.no_grad()
def measure(model: torch.nn.Module, rows: Rows, device: torch.device) -> WidthStatistics:
    """Return statistics over the tokens of `rows` that are no padding.

    `model`, in evaluation mode, is one of a known family or a ZeRO engine around one. Collective
    where it is sharded.
    """
    recorder = _Recorder(unwrapped(model))
    try:
        for first in range(0, len(rows), _ROWS_AT_ONCE):
            part = rows.take(np.arange(first, min(first + _ROWS_AT_ONCE, len(rows))))
            recorder.run(model, part, device)
    finally:
        recorder.remove()
    channels = [
        recorder.mean("norm", i, 1) + recorder.mean("norm", i, 2) for i in range(recorder.layers)
    ]
    return WidthStatistics(
        channels=np.stack([*channels, recorder.mean("norm", recorder.layers, 1)]),
        neurons=np.stack([recorder.mean("neurons", i) for i in range(recorder.layers)]),
        heads=np.stack([recorder.mean("heads", i) for i in range(recorder.layers)]),
    )


class _Recorder:
    """Hooks on a transformers model that sum activations over tokens, in float64."""

    def __init__(self, model: Any) -> None:
        self._config = model.config
        self._sums: dict[tuple[Any, ...], torch.Tensor] = {}
        self._tokens = 0
        self._counted = torch.empty(0)  # [B, T] bool: tokens of the present forward that count
        self._handles: list[Any] = []
        family = family_of(model.config)
        layers = model.base_model.get_submodule(family.layers)
        self.layers = len(layers)
        first, second = family.norms
        for i, layer in enumerate(layers):
            self._on_output(layer.get_submodule(first), ("norm", i, 1))
            self._on_output(layer.get_submodule(second), ("norm", i, 2))
            self._on_input(layer.get_submodule(family.mlp_output), ("neurons", i), torch.abs)
            output = layer.get_submodule(family.attention_output)
            self._on_input(output, ("heads", i), self._head_norms)
        last = layers[-1].get_submodule(second)
        if family.final_norm is not None:
            last = model.base_model.get_submodule(family.final_norm)
        self._on_output(last, ("norm", self.layers, 1))

    def run(self, model: torch.nn.Module, rows: Rows, device: torch.device) -> None:
        """Add the activations of a forward over `rows`."""
        batch = row_tensors(rows, device)
        self._counted = computed_tokens(self._config, batch.segments != 0)
        # The head over all positions would cost as much as some layers, for nothing.
        short = {"logits_to_keep": 1} if task_of(self._config) == "causal-lm" else {}
        inputs = model_inputs(model, batch.ids, batch.segments, batch.documents)
        model(**inputs, **short)
        self._tokens += int(self._counted.sum())

    def mean(self, *key: Any) -> np.ndarray:
        """Return the mean over all tokens so far."""
        found: np.ndarray = self._sums[key].cpu().numpy() / self._tokens
        return found

    def remove(self) -> None:
        """Take the hooks out of the model."""
        for handle in self._handles:
            handle.remove()

    def _on_output(self, module: torch.nn.Module, key: tuple[Any, ...]) -> None:
        def hook(_: torch.nn.Module, inputs: Any, output: torch.Tensor) -> None:
            self._add(key, torch.abs, output)

        self._handles.append(module.register_forward_hook(hook))

    def _on_input(self, module: torch.nn.Module, key: tuple[Any, ...], strength: Strength) -> None:
        def hook(_: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
            self._add(key, strength, inputs[0])

        self._handles.append(module.register_forward_pre_hook(hook))

    def _add(self, key: tuple[Any, ...], strength: Strength, activation: torch.Tensor) -> None:
        """Add `activation` [B, T, ...]."""
        found = strength(activation[self._counted].float()).sum(dim=0).double()
        self._sums[key] = self._sums[key] + found if key in self._sums else found

    def _head_norms(self, outputs: torch.Tensor) -> torch.Tensor:
        return outputs.unflatten(-1, (self._config.num_attention_heads, -1)).norm(dim=-1)
