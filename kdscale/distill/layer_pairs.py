"""Which layers of student and teacher are compared, whatever of them is."""

from collections.abc import Callable, Sequence

import torch

from kdscale.config.online import LayerPairs
from kdscale.errors import KdscaleError


def choose_pairs(layers: LayerPairs | None, depths: tuple[int, int], field: str) -> LayerPairs:
    """Pairs of a layer of the student and one of the teacher, which have so many: `layers`, or by
    default every layer of the student with its match.

    KdscaleError, which names the config's `field`, for layers that one of them has not.
    """
    pairs = layers or tuple((i, matching_layer(i, *depths)) for i in range(depths[0]))
    for pair in pairs:
        for layer, depth, name in zip(pair, depths, ("student", "teacher"), strict=True):
            if not 0 <= layer < depth:
                raise KdscaleError(
                    f"{field} has {list(pair)}, but the {name} has layers 0 to {depth - 1}.",
                    "Give pairs of layers that both have.",
                )
    return pairs


def matching_layer(layer: int, student: int, teacher: int) -> int:
    """The teacher's layer at the same share of the depth as the student's; the last with the
    last."""
    return max(0, round((layer + 1) * teacher / student) - 1)


def mean_over_pairs(
    loss: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
    student: Sequence[torch.Tensor],
    teacher: Sequence[torch.Tensor],
) -> torch.Tensor:
    """The mean of `loss`, a scalar, over pairs of tensors in the same places of both."""
    parts = [loss(mine, theirs) for mine, theirs in zip(student, teacher, strict=True)]
    return torch.stack(parts).mean()
