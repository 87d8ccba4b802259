"""Losses on layers: which layers of student and teacher are compared, through which maps.

Hidden states of different widths are compared behind a learned map. Attention heads of one model
have no counterpart in the other, and their numbers differ, so the mean over heads is compared:
where a layer looks, whichever head does. MiniLM and TinyBERT compare head by head, and so need as
many in the student as in the teacher.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from kdscale.config import RunConfig
from kdscale.config.online import AttentionConfig, HiddenConfig, LayerPairs
from kdscale.errors import KdscaleError
from kdscale.losses.layers import (
    attention_kl_sum,
    attention_mse_sum,
    hidden_cosine_sum,
    hidden_mse_sum,
)
from kdscale.models.hf_folder import ModelReference
from kdscale.models.load import load_config_of

_HIDDEN = {"mse": hidden_mse_sum, "cosine": hidden_cosine_sum}
_ATTENTION = {"kl": attention_kl_sum, "mse": attention_mse_sum}


@dataclass(frozen=True)
class HiddenLoss:
    """Loss between the hidden states of pairs of layers."""

    config: HiddenConfig
    pairs: LayerPairs
    widths: tuple[int, int]  # of student and teacher

    def projections(self, seed: int) -> list[torch.nn.Module]:
        """Return one map a pair, from the student's width to the teacher's, drawn by `seed`."""
        student, teacher = self.widths
        if student == teacher:
            return [torch.nn.Identity() for _ in self.pairs]
        generator = torch.Generator().manual_seed(seed)
        maps: list[torch.nn.Module] = []
        for _ in self.pairs:
            map_ = torch.nn.Linear(student, teacher, bias=False)
            with torch.no_grad():
                map_.weight.normal_(std=student**-0.5, generator=generator)
            maps.append(map_)
        return maps

    def __call__(
        self,
        projections: Iterable[torch.nn.Module],
        student: Sequence[torch.Tensor],
        teacher: Sequence[torch.Tensor],
    ) -> torch.Tensor:
        """Return the sum over P positions of the mean over pairs, float32.

        `student` and `teacher` are the outputs of their layers, [P, D] each, by layer.
        """
        pairs = zip(projections, self.pairs, strict=True)
        mine = [project(student[layer]) for project, (layer, _) in pairs]
        theirs = [teacher[layer] for _, layer in self.pairs]
        return _mean_over_pairs(_HIDDEN[self.config.kind], mine, theirs)


@dataclass(frozen=True)
class AttentionLoss:
    """Loss between the attention weights of pairs of layers."""

    config: AttentionConfig
    pairs: LayerPairs

    def __call__(
        self, student: Sequence[torch.Tensor], teacher: Sequence[torch.Tensor]
    ) -> torch.Tensor:
        """Return the sum over P queries of the mean over pairs, float32.

        `student` and `teacher` are the weights of their layers, means over heads, [P, T] each, by
        layer.
        """
        mine = [student[layer] for layer, _ in self.pairs]
        theirs = [teacher[layer] for _, layer in self.pairs]
        return _mean_over_pairs(_ATTENTION[self.config.kind], mine, theirs)


def make_layer_losses(
    config: RunConfig, student: Any, teacher: ModelReference | None
) -> tuple[HiddenLoss | None, AttentionLoss | None]:
    """Return the losses on hidden states and on attention that `config` asks for.

    `student` is its transformers config. Raises KdscaleError for layers that one of them lacks.
    """
    online = config.distill.online
    if not online.layer_outputs:
        return None, None
    assert teacher is not None
    shapes = (student, load_config_of(teacher.local(weights=False), teacher.revision))
    own, theirs = (shape.get_text_config() for shape in shapes)
    depths = own.num_hidden_layers, theirs.num_hidden_layers
    widths = own.hidden_size, theirs.hidden_size
    hidden = make_hidden_loss(online.hidden, depths, widths) if online.hidden else None
    attention = make_attention_loss(online.attention, depths) if online.attention else None
    return hidden, attention


def make_hidden_loss(
    config: HiddenConfig, depths: tuple[int, int], widths: tuple[int, int]
) -> HiddenLoss:
    """Return the loss for the layers and widths of (student, teacher). Raises KdscaleError."""
    pairs = choose_pairs(config.layers, depths, "distill.online.hidden.layers")
    return HiddenLoss(config, pairs, widths)


def make_attention_loss(config: AttentionConfig, depths: tuple[int, int]) -> AttentionLoss:
    """Return the loss for the numbers of layers of (student, teacher). Raises KdscaleError."""
    pairs = choose_pairs(config.layers, depths, "distill.online.attention.layers")
    return AttentionLoss(config, pairs)


def choose_pairs(layers: LayerPairs | None, depths: tuple[int, int], field: str) -> LayerPairs:
    """Return the pairs (layer of the student, layer of the teacher) to compare.

    `layers`, or by default every layer of the student with its match; `depths` are the numbers of
    layers of both. Raises KdscaleError, which names the config's `field`, for layers that one of
    them lacks.
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
    """Return the teacher's layer at the same share of the depth; the last matches the last."""
    return max(0, round((layer + 1) * teacher / student) - 1)


def _mean_over_pairs(
    loss: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
    student: Sequence[torch.Tensor],
    teacher: Sequence[torch.Tensor],
) -> torch.Tensor:
    parts = [loss(mine, theirs) for mine, theirs in zip(student, teacher, strict=True)]
    return torch.stack(parts).mean()
