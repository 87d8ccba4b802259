"""Choice of layers of the model that a student starts from, and a config cut to them."""

import re
from dataclasses import dataclass
from typing import Any

from huggingface_hub.errors import StrictDataclassError

from kdscale.config.initial import LayerChoice
from kdscale.errors import KdscaleError

# Lists in transformers' configs that may be as long as the model has layers, and are not of these.
_OF_THE_MODEL = re.compile(r"_token_ids?$|^architectures$")


@dataclass(frozen=True)
class Origin:
    """Words for the model that a student starts from, in messages."""

    name: str
    field: str
    """Config field of the choice of its layers."""


TEACHER = Origin("teacher", "teacher_layers")
LOADED = Origin("loaded model", "layers")


def choose_layers(
    choice: list[int] | LayerChoice, have: int, origin: Origin = TEACHER
) -> list[int]:
    """Return the layers of `origin` that a student starts from, in the student's order.

    Raises KdscaleError where it has `have` layers and lacks some of them.
    """
    if isinstance(choice, LayerChoice):
        if choice.count > have:
            raise KdscaleError(
                f"{origin.field} asks for {choice.count} layers of a {origin.name} with {have}.",
                f"Give a count up to {have}.",
            )
        return _even(choice.count, have) if choice.kind == "even" else _ends(choice.count, have)
    wrong = [layer for layer in choice if not 0 <= layer < have]
    if wrong:
        raise KdscaleError(
            f"{origin.field} {wrong} are not among the {origin.name}'s layers 0 to {have - 1}.",
            f"Choose layers that the {origin.name} has.",
        )
    return list(choice)


def _even(count: int, have: int) -> list[int]:
    """Return the layers nearest to `count` evenly spaced points from first to last."""
    gaps = count - 1
    return [(2 * i * (have - 1) + gaps) // (2 * gaps) for i in range(count)]


def _ends(count: int, have: int) -> list[int]:
    front = -(-count // 2)
    return [*range(front), *range(have - (count - front), have)]


def keep_layers(config: Any, layers: list[int]) -> None:
    """Cut a transformers config to `layers`, in place: their number, and lists with one entry each.

    Kinds of layers that follow from a layer's number are not seen here: see `sources.py`.
    """
    have = config.num_hidden_layers
    for name, entries in list(vars(config).items()):
        is_list = isinstance(entries, list | tuple) and not _OF_THE_MODEL.search(name)
        if is_list and len(entries) == have:
            setattr(config, name, [entries[layer] for layer in layers])
    if hasattr(config, "attention_types"):
        # GPT-Neo says the same as in `attention_layers` once more, as [kinds, how many times].
        config.attention_types = [[list(config.attention_layers), 1]]
    config.num_hidden_layers = len(layers)


def check_cut(config: Any, layers: list[int], origin: Origin = TEACHER) -> None:
    """Raise KdscaleError where transformers refuses a config that was cut to `layers`."""
    try:
        config.validate()
    except (StrictDataclassError, ValueError) as error:
        raise KdscaleError(
            f"transformers refuses a {config.model_type!r} of the layers {layers}: "
            f"{error.__cause__ or error}",
            f"Choose other {origin.field}, or start this student from `model`.",
        ) from error
