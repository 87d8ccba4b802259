"""Which hidden states of student and teacher are compared, through which maps, by which loss."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch

from kdscale.config.online import HiddenConfig, LayerPairs
from kdscale.distill.layer_pairs import choose_pairs, mean_over_pairs
from kdscale.losses.hidden import hidden_cosine_sum, hidden_mse_sum

_LOSSES = {"mse": hidden_mse_sum, "cosine": hidden_cosine_sum}


@dataclass(frozen=True)
class HiddenLoss:
    """A loss between the hidden states of pairs of layers."""

    config: HiddenConfig
    pairs: LayerPairs
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
        pairs = zip(projections, self.pairs, strict=True)
        mine = [project(student[layer]) for project, (layer, _) in pairs]
        theirs = [teacher[layer] for _, layer in self.pairs]
        return mean_over_pairs(_LOSSES[self.config.kind], mine, theirs)


def make_hidden_loss(
    config: HiddenConfig, depths: tuple[int, int], widths: tuple[int, int]
) -> HiddenLoss:
    """For a student and a teacher of so many layers and such widths. KdscaleError for layers that
    one of them has not."""
    pairs = choose_pairs(config.layers, depths, "distill.online.hidden.layers")
    return HiddenLoss(config, pairs, widths)
