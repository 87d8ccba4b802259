"""Choice of the teacher's layers, and a config cut to them."""

import re
from typing import Any

from huggingface_hub.errors import StrictDataclassError

from kdscale.config.initial import LayerChoice
from kdscale.errors import KdscaleError

# Lists in transformers' configs that may be as long as the model has layers, and are not of these.
_OF_THE_MODEL = re.compile(r"_token_ids?$|^architectures$")


def choose_layers(choice: list[int] | LayerChoice, have: int) -> list[int]:
    """Return the teacher's layers that a student starts from, in the student's order.

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


def check_cut(config: Any, layers: list[int]) -> None:
    """Raise KdscaleError where transformers refuses a config that was cut to `layers`."""
    try:
        config.validate()
    except (StrictDataclassError, ValueError) as error:
        raise KdscaleError(
            f"transformers refuses a {config.model_type!r} of the layers {layers}: "
            f"{error.__cause__ or error}",
            "Choose other teacher_layers, or start this student from `model`.",
        ) from error
