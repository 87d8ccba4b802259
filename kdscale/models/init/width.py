"""A narrower copy of a model: its sizes, and the dimensions of the original that it keeps.

Those with the largest activations on a calibration sample (Minitron, arXiv:2407.14679): channels of
the residual stream, one set for the whole model because it is one stream; neurons and attention
heads layer by layer. The kept ones stay in their order.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from huggingface_hub.errors import StrictDataclassError

from kdscale.config.initial import WidthConfig
from kdscale.errors import KdscaleError
from kdscale.models.init.families import Family, axes_at, family_of
from kdscale.models.init.layers import TEACHER, Origin


@dataclass(frozen=True)
class Sizes:
    """Sizes of a model."""

    hidden: int
    neurons: int
    heads: int
    groups: int  # of query heads that share a key and value head
    head: int

    @staticmethod
    def of(config: Any) -> "Sizes":
        """Return those of a transformers config."""
        head = getattr(config, "head_dim", None)
        return Sizes(
            config.hidden_size,
            config.intermediate_size,
            config.num_attention_heads,
            # Encoders have as many as query heads.
            getattr(config, "num_key_value_heads", config.num_attention_heads),
            head or config.hidden_size // config.num_attention_heads,
        )


@dataclass(frozen=True)
class WidthStatistics:
    """Activity of a model of L layers, each a mean over the tokens of a sample; float64."""

    channels: np.ndarray  # [L + 1, H] |norm output|, a layer's two norms added; last the final one
    neurons: np.ndarray  # [L, I] |input of the MLP's last projection|
    heads: np.ndarray  # [L, A] Euclidean norm of a head's output


@dataclass(frozen=True)
class Kept:
    """Dimensions kept of the model that it starts from, ascending int64, by the student's layer."""

    hidden: np.ndarray  # [H']
    neurons: list[np.ndarray]  # [I'] each
    queries: list[np.ndarray]  # [A' * head size] each
    keys: list[np.ndarray]  # [K' * head size] each

    def cut(self, tensor: torch.Tensor, axes: tuple[str, ...], layer: int | None) -> torch.Tensor:
        """Return the kept part of that model's `tensor` along `axes`, for the student's `layer`."""
        for dimension, axis in enumerate(axes):
            if axis == "hidden":
                tensor = tensor.index_select(dimension, torch.from_numpy(self.hidden))
            elif axis in ("neurons", "queries", "keys"):
                assert layer is not None
                kept = getattr(self, axis)[layer]
                tensor = tensor.index_select(dimension, torch.from_numpy(kept))
        return tensor


def axes_of(
    name: str, shape: tuple[int, ...], sizes: Sizes, family: Family, origin: Origin = TEACHER
) -> tuple[str, ...]:
    """Return the axis along each dimension of the tensor `name` of `origin`.

    Raises KdscaleError for one that is not known, or has another shape than its kind.
    """
    axes = axes_at(family, name)
    lengths = {
        "hidden": sizes.hidden,
        "neurons": sizes.neurons,
        "queries": sizes.heads * sizes.head,
        "keys": sizes.groups * sizes.head,
        "head": sizes.head,
    }
    if not axes or shape != tuple(lengths.get(a, n) for a, n in zip(axes, shape, strict=False)):
        raise KdscaleError(
            f"The {origin.name}'s tensor {name!r} of shape {list(shape)} is none that can be "
            "sliced.",
            "Leave out `width`.",
        )
    return axes


def narrow_sizes(config: Any, width: WidthConfig, origin: Origin = TEACHER) -> Sizes:
    """Return the student's sizes. Raises KdscaleError for those that `origin` cannot give."""
    family = family_of(config, origin.name)
    have = Sizes.of(config)
    # Where every query head has its own keys, the one size is the other.
    alone = have.heads == have.groups
    groups = width.num_key_value_heads or (width.num_attention_heads if alone else 0) or have.groups
    heads = width.num_attention_heads
    if heads is None:
        heads = groups * (have.heads // have.groups)
    wanted = {
        "hidden_size": (width.hidden_size or have.hidden, have.hidden),
        "intermediate_size": (width.intermediate_size or have.neurons, have.neurons),
        "num_key_value_heads": (groups, have.groups),
        "num_attention_heads": (heads, have.heads),
    }
    for name, (size, most) in wanted.items():
        if size > most:
            raise KdscaleError(
                f"width.{name} {size} is more than the {origin.name}'s {most}.",
                f"Give at most {most}.",
            )
    shared = have.heads // have.groups
    if heads % groups or heads // groups > shared:
        raise KdscaleError(
            f"{heads} query heads cannot share {groups} key and value heads of a {origin.name} "
            f"where {shared} share one.",
            f"Give a multiple of {groups} up to {groups * shared} as width.num_attention_heads, "
            "or another width.num_key_value_heads.",
        )
    sizes = Sizes(
        wanted["hidden_size"][0], wanted["intermediate_size"][0], heads, groups, have.head
    )
    if not family.has_head_dim and sizes.hidden != heads * have.head:
        raise KdscaleError(
            f"A {config.model_type!r} of {heads} heads of {have.head} dimensions has a hidden size "
            f"of {heads * have.head}, not {sizes.hidden}.",
            "Give width.hidden_size and width.num_attention_heads together, that many dimensions a "
            "head.",
        )
    return sizes


def narrow_config(config: Any, sizes: Sizes) -> None:
    """Write `sizes` into a transformers config. Raises KdscaleError where it does not take them."""
    config.hidden_size = sizes.hidden
    config.intermediate_size = sizes.neurons
    config.num_attention_heads = sizes.heads
    if family_of(config).has_head_dim:
        config.num_key_value_heads = sizes.groups
        config.head_dim = sizes.head
    try:
        config.validate()
    except StrictDataclassError as error:
        raise KdscaleError(
            f"transformers refuses a {config.model_type!r} of this width: {error.__cause__}",
            "Give sizes under `width` that the architecture takes.",
        ) from error


def choose(student: Sizes, start: Sizes, layers: list[int], statistics: WidthStatistics) -> Kept:
    """Return the dimensions that a student of `layers` keeps, by them and by the final norm."""
    used = [*layers, -1]
    heads = [_top_heads(statistics.heads[layer], student, start) for layer in layers]
    return Kept(
        hidden=_top(statistics.channels[used].sum(axis=0), student.hidden),
        neurons=[_top(statistics.neurons[layer], student.neurons) for layer in layers],
        queries=[_spans(queries, student.head) for queries, _ in heads],
        keys=[_spans(groups, student.head) for _, groups in heads],
    )


def _top(importance: np.ndarray, count: int) -> np.ndarray:
    """Return the indices of the `count` largest, ascending; of equal ones the first."""
    return np.sort(np.argsort(-importance, kind="stable")[:count])


def _top_heads(
    importance: np.ndarray, student: Sizes, start: Sizes
) -> tuple[np.ndarray, np.ndarray]:
    """Return the (query heads, key and value heads) to keep.

    A query head stays with its keys, so that a group is worth what its heads that would be kept are
    worth together.
    """
    by_group = importance.reshape(start.groups, -1)
    each = student.heads // student.groups
    worth = np.sort(by_group, axis=1)[:, -each:].sum(axis=1)
    groups = _top(worth, student.groups)
    queries = [group * by_group.shape[1] + _top(by_group[group], each) for group in groups]
    return np.concatenate(queries), groups


def _spans(heads: np.ndarray, size: int) -> np.ndarray:
    """Return the dimensions of `heads`, each `size` long."""
    return (heads[:, None] * size + np.arange(size)).ravel()
