"""Which layers of a teacher a student takes, and what they are called in each of the two."""

import re
from collections.abc import Mapping
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from transformers import PreTrainedModel

from kdscale.config.initial import LayerChoice
from kdscale.errors import KdscaleError

# Lists in transformers' configs that may be as long as the model has layers, and are not of these.
_OF_THE_MODEL = re.compile(r"_token_ids?$|^architectures$")


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
    """Cut a transformers config to `layers`, in place: their number, and what has an entry a layer.
    Kinds of layers that follow from a layer's number are not seen here: see `check_kinds`."""
    have = config.num_hidden_layers
    for name, entries in list(vars(config).items()):
        is_list = isinstance(entries, list | tuple) and not _OF_THE_MODEL.search(name)
        if is_list and len(entries) == have:
            setattr(config, name, [entries[layer] for layer in layers])
    if hasattr(config, "attention_types"):
        # GPT-Neo says the same as in `attention_layers` once more, as [kinds, how many times].
        config.attention_types = [[list(config.attention_layers), 1]]
    config.num_hidden_layers = len(layers)


def check_cut(config: Any, layers: list[int]) -> None:
    """Refuse a transformers config that was cut to `layers` and that transformers does not take."""
    try:
        config.validate()
    except (StrictDataclassError, ValueError) as error:
        raise KdscaleError(
            f"transformers refuses a {config.model_type!r} of the layers {layers}: "
            f"{error.__cause__ or error}",
            "Choose other teacher_layers, or start this student from `model`.",
        ) from error


def check_kinds(
    mine: Mapping[str, Mapping[str, Any]],
    theirs: Mapping[str, Mapping[str, Any]],
    prefix: str,
    layers: list[int],
) -> None:
    """Refuse a student whose layers are of other kinds than the teacher's `layers` that they start
    from: with other attention, other positions, experts or none.

    `mine` and `theirs` have the settings of both models' modules by name (`module_settings`).
    """
    for name, settings in mine.items():
        layer = layer_of(f"{name}.", prefix)
        if layer is None:
            continue
        start = layers[layer]
        other = theirs.get(in_layer(f"{name}.", prefix, start).rstrip("."), {})
        for key in settings.keys() | other.keys():
            pair = settings.get(key), other.get(key)
            if pair[0] != pair[1] and pair != (layer, start):  # a layer may know its own number
                raise KdscaleError(
                    f"The student's layer {layer} would start from the teacher's {start}, which is "
                    f"of another kind: {key} of {name} is {pair[0]!r} in the one and {pair[1]!r} "
                    "in the other.",
                    "Choose teacher_layers whose kinds come in the teacher's order.",
                )


def module_settings(model: torch.nn.Module) -> dict[str, dict[str, Any]]:
    """By the name of each module its class and its plain settings: numbers, flags, texts."""
    return {
        name: {"class": type(module).__name__}
        | {
            key: value
            for key, value in vars(module).items()
            if isinstance(value, bool | int | float | str)
        }
        for name, module in model.named_modules()
    }


def layer_prefix(model: PreTrainedModel, count: int) -> str | None:
    """Name of the module list that holds the model's `count` layers, such as `model.layers`; None
    where there is none, or where layers are spread over several lists."""
    found = [
        name
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.ModuleList) and len(module) == count and "expert" not in name
    ]
    outer = [name for name in found if not name.startswith(f"{found[0]}.")]
    return outer[0] if len(outer) == 1 else None


def layer_of(name: str, prefix: str | None) -> int | None:
    """The layer that the tensor `name` belongs to, None for one outside of all layers."""
    match = prefix and re.match(rf"{re.escape(prefix)}\.(\d+)\.", name)
    return int(match[1]) if match else None


def in_layer(name: str, prefix: str, layer: int) -> str:
    """The name of the same tensor in another layer."""
    return re.sub(rf"^{re.escape(prefix)}\.\d+\.", f"{prefix}.{layer}.", name)
