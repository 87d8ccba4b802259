"""Which layers of a teacher a student takes, and what they are called in each of the two."""

import re
from typing import Any

import torch
from transformers import PreTrainedModel

from kdscale.config.initial import LayerChoice
from kdscale.errors import KdscaleError

# Fields of transformers' configs that have one entry a layer.
_PER_LAYER = ("layer_types", "mlp_layer_types", "no_rope_layers")


def choose_layers(choice: list[int] | LayerChoice, have: int) -> list[int]:
    """The teacher's layers that a student starts from, in the student's order.

    Raises KdscaleError where a teacher of `have` layers lacks some of them.
    """
    if isinstance(choice, LayerChoice):
        if choice.count > have:
            raise KdscaleError(
                f"teacher_layers asks for {choice.count} layers of a teacher with {have}.",
                f"Give a count up to {have}.",
            )
        return _even(choice.count, have) if choice.kind == "even" else _ends(choice.count, have)
    wrong = [layer for layer in choice if not 0 <= layer < have]
    if wrong:
        raise KdscaleError(
            f"teacher_layers {wrong} are not among the teacher's layers 0 to {have - 1}.",
            "Choose layers that the teacher has.",
        )
    return list(choice)


def _even(count: int, have: int) -> list[int]:
    """The nearest layers to `count` evenly spaced points from the first to the last layer."""
    gaps = count - 1
    return [(2 * i * (have - 1) + gaps) // (2 * gaps) for i in range(count)]


def _ends(count: int, have: int) -> list[int]:
    front = -(-count // 2)
    return [*range(front), *range(have - (count - front), have)]


def keep_layers(config: Any, layers: list[int]) -> None:
    """Cut a transformers config to `layers`, in place."""
    for name in _PER_LAYER:
        entries = getattr(config, name, None)
        if entries and len(entries) == config.num_hidden_layers:
            setattr(config, name, [entries[layer] for layer in layers])
    config.num_hidden_layers = len(layers)


def layer_prefix(model: PreTrainedModel, count: int) -> str | None:
    """Name of the module list that holds the model's `count` layers, such as `model.layers`; None
    where there is none."""
    for name, module in model.named_modules():
        if (
            isinstance(module, torch.nn.ModuleList)
            and len(module) == count
            and "expert" not in name
        ):
            return name
    return None


def layer_of(name: str, prefix: str | None) -> int | None:
    """The layer that the tensor `name` belongs to, None for one outside of all layers."""
    match = prefix and re.match(rf"{re.escape(prefix)}\.(\d+)\.", name)
    return int(match[1]) if match else None


def in_layer(name: str, prefix: str, layer: int) -> str:
    """The name of the same tensor in another layer."""
    return re.sub(rf"^{re.escape(prefix)}\.\d+\.", f"{prefix}.{layer}.", name)
