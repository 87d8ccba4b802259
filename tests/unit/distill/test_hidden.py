"""Which layers are compared, and through what."""

import pytest
import torch

from kdscale.config.online import HiddenConfig
from kdscale.distill.layer_losses import make_hidden_loss
from kdscale.errors import KdscaleError


def test_every_layer_of_the_student_has_a_match_by_default() -> None:
    chosen = make_hidden_loss(HiddenConfig(), (2, 6), (4, 4))
    assert chosen.pairs == ((0, 2), (1, 5))


def test_layers_that_are_not_there_are_refused() -> None:
    for pair, name in (
        ((2, 0), "student has layers 0 to 1"),
        ((0, 6), "teacher has layers 0 to 5"),
    ):
        with pytest.raises(
            KdscaleError, match=rf"hidden.layers has \[{pair[0]}, {pair[1]}\], but the {name}"
        ):
            make_hidden_loss(HiddenConfig(layers=(pair,)), (2, 6), (4, 4))


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
