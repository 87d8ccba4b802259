"""Which attention weights of student and teacher are compared, by which loss.

Heads of one have no counterpart in the other, and their numbers differ, so the mean over heads is
compared: where a layer looks, whichever head does. MiniLM and TinyBERT compare head by head, and so
need as many in the student as in the teacher.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from kdscale.config.online import AttentionConfig, LayerPairs
from kdscale.distill.layer_pairs import choose_pairs, mean_over_pairs
from kdscale.losses.attention import attention_kl_sum, attention_mse_sum

_LOSSES = {"kl": attention_kl_sum, "mse": attention_mse_sum}


@dataclass(frozen=True)
class AttentionLoss:
    """A loss between the attention weights of pairs of layers."""

    config: AttentionConfig
    pairs: LayerPairs

    def __call__(
        self, student: Sequence[torch.Tensor], teacher: Sequence[torch.Tensor]
    ) -> torch.Tensor:
        """Sum over P queries of the mean over pairs; `student` and `teacher` are the weights of
        their layers, means over heads, [P, T] each, by layer."""
        mine = [student[layer] for layer, _ in self.pairs]
        theirs = [teacher[layer] for _, layer in self.pairs]
        return mean_over_pairs(_LOSSES[self.config.kind], mine, theirs)


def make_attention_loss(config: AttentionConfig, depths: tuple[int, int]) -> AttentionLoss:
    """For a student and a teacher of so many layers. KdscaleError for layers that one of them has
    not."""
    pairs = choose_pairs(config.layers, depths, "distill.online.attention.layers")
    return AttentionLoss(config, pairs)
