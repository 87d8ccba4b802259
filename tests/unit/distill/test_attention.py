"""Which attention weights are compared."""

import pytest
import torch

from kdscale.config.online import AttentionConfig
from kdscale.distill.layer_losses import make_attention_loss
from kdscale.errors import KdscaleError
from kdscale.losses.layers import attention_kl_sum


def test_the_loss_is_the_mean_over_its_pairs() -> None:
    generator = torch.Generator().manual_seed(0)
    student, teacher = (
        [torch.rand(3, 4, generator=generator).softmax(-1) for _ in range(depth)]
        for depth in (2, 4)
    )
    for layers, pairs in ((None, [(0, 1), (1, 3)]), (((1, 0), (0, 2), (1, 1)), None)):
        loss = make_attention_loss(AttentionConfig(layers=layers), (2, 4))
        expected = [attention_kl_sum(student[i], teacher[j]) for i, j in pairs or layers]
        assert len(loss.pairs) == len(expected)
        found = loss(student, teacher)
        assert found.item() == pytest.approx(sum(map(float, expected)) / len(expected), rel=1e-5)


def test_layers_that_are_not_there_are_refused() -> None:
    with pytest.raises(
        KdscaleError, match=r"online.attention.layers has \[0, 4\], but the teacher"
    ):
        make_attention_loss(AttentionConfig(layers=((0, 4),)), (2, 4))
