"""Which layers of student and teacher are compared, through which maps, by which loss."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch

from kdscale.config.live import HiddenConfig
from kdscale.errors import KdscaleError
from kdscale.losses.hidden import hidden_cosine_sum, hidden_mse_sum

_LOSSES = {"mse": hidden_mse_sum, "cosine": hidden_cosine_sum}


@dataclass(frozen=True)
class HiddenLoss:
    """A loss between pairs of layers."""

    config: HiddenConfig
    pairs: tuple[tuple[int, int], ...]
    widths: tuple[int, int]  # of student and teacher

    def projections(self, seed: int) -> list[torch.nn.Module]:
        """One map a pair, from the student's width to the teacher's; the same for equal seeds."""
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
        """Sum over P positions of the mean over pairs; `student` and `teacher` are what their
        layers give, [P, D] each, by layer."""
        loss = _LOSSES[self.config.kind]
        parts = [
            loss(project(student[mine]), teacher[theirs])
            for project, (mine, theirs) in zip(projections, self.pairs, strict=True)
        ]
        return torch.stack(parts).mean()


def make_hidden_loss(
    config: HiddenConfig, depths: tuple[int, int], widths: tuple[int, int]
) -> HiddenLoss:
    """For a student and a teacher of so many layers and such widths. KdscaleError for layers that
    one of them has not."""
    pairs = config.layers or tuple((i, matching_layer(i, *depths)) for i in range(depths[0]))
    for pair in pairs:
        for layer, depth, name in zip(pair, depths, ("student", "teacher"), strict=True):
            if not 0 <= layer < depth:
                raise KdscaleError(
                    f"distill.live.hidden.layers has {list(pair)}, but the {name} has layers 0 to "
                    f"{depth - 1}.",
                    "Give pairs of layers that both have.",
                )
    return HiddenLoss(config, pairs, widths)


def matching_layer(layer: int, student: int, teacher: int) -> int:
    """The teacher's layer at the same share of the depth as the student's; the last with the
    last."""
    return max(0, round((layer + 1) * teacher / student) - 1)
