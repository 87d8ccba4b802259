"""Losses on layers: which layers are compared, and through what."""

from functools import partial

import pytest
import torch

from kdscale.config.online import AttentionConfig, HiddenConfig
from kdscale.distill.layer_losses import make_attention_loss, make_hidden_loss, matching_layer
from kdscale.errors import KdscaleError
from kdscale.losses.layers import attention_kl_sum


def test_layers_match_by_depth_and_the_last_is_with_the_last() -> None:
    assert [matching_layer(i, 3, 12) for i in range(3)] == [3, 7, 11]
    assert [matching_layer(i, 4, 4) for i in range(4)] == [0, 1, 2, 3]
    assert [matching_layer(i, 3, 2) for i in range(3)] == [0, 0, 1]
    assert matching_layer(0, 1, 30) == 29
    assert make_hidden_loss(HiddenConfig(), (2, 6), (4, 4)).pairs == ((0, 2), (1, 5))


@pytest.mark.parametrize(
    ("pair", "name"), [((2, 0), "student has layers 0 to 1"), ((0, 6), "teacher has layers 0 to 5")]
)
@pytest.mark.parametrize("kind", ["hidden", "attention"])
def test_layers_that_are_not_there_are_refused(pair: tuple[int, int], name: str, kind: str) -> None:
    make = {
        "hidden": partial(make_hidden_loss, HiddenConfig(layers=(pair,)), widths=(4, 4)),
        "attention": partial(make_attention_loss, AttentionConfig(layers=(pair,))),
    }[kind]
    message = rf"online.{kind}.layers has \[{pair[0]}, {pair[1]}\], but the {name}"
    with pytest.raises(KdscaleError, match=message):
        make(depths=(2, 6))


def test_states_go_through_learned_maps_where_widths_differ() -> None:
    loss = make_hidden_loss(HiddenConfig(layers=((0, 1), (1, 0))), (2, 2), (3, 5))
    maps = loss.projections(seed=1)
    student = [torch.randn(7, 3, generator=torch.Generator().manual_seed(i)) for i in range(2)]
    teacher = [torch.randn(7, 5, generator=torch.Generator().manual_seed(9 + i)) for i in range(2)]
    found = loss(maps, student, teacher)
    weights = [next(map_.parameters()) for map_ in maps]
    expected = [
        ((student[0] @ weights[0].T - teacher[1]) ** 2).mean(1).sum(),
        ((student[1] @ weights[1].T - teacher[0]) ** 2).mean(1).sum(),
    ]
    assert found.item() == pytest.approx((sum(expected) / 2).item(), rel=1e-5)
    found.backward()
    assert all(weight.grad is not None and weight.grad.abs().max() > 0 for weight in weights)
    again = [next(map_.parameters()) for map_ in loss.projections(seed=1)]
    assert all(torch.equal(a, b) for a, b in zip(weights, again, strict=True))
    same = make_hidden_loss(HiddenConfig(), (2, 2), (5, 5))
    assert [list(map_.parameters()) for map_ in same.projections(0)] == [[], []]


@pytest.mark.parametrize(
    ("layers", "pairs"), [(None, [(0, 1), (1, 3)]), (((1, 0), (0, 2), (1, 1)), None)]
)
def test_the_attention_loss_is_the_mean_over_its_pairs(
    layers: tuple[tuple[int, int], ...] | None, pairs: list[tuple[int, int]] | None
) -> None:
    generator = torch.Generator().manual_seed(0)
    student, teacher = (
        [torch.rand(3, 4, generator=generator).softmax(-1) for _ in range(depth)]
        for depth in (2, 4)
    )
    loss = make_attention_loss(AttentionConfig(layers=layers), (2, 4))
    expected = [float(attention_kl_sum(student[i], teacher[j])) for i, j in pairs or layers or ()]
    found = loss(student, teacher)
    assert found.item() == pytest.approx(sum(expected) / len(expected), rel=1e-5)
