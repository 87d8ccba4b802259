"""Losses on attention weights against their definitions, in value and gradient."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kdscale.losses.layers import attention_kl_sum, attention_mse_sum


def naive(kind: str, student: list[list[float]], teacher: list[list[float]]) -> float:
    total = 0.0
    for s, t in zip(student, teacher, strict=True):
        for a, b in zip(s, t, strict=True):
            if kind == "mse":
                total += (a - b) ** 2
            elif b > 0:
                p, q = b / sum(t), a / sum(s)
                total += p * math.log(p / q)
    return total


@pytest.mark.parametrize(("kind", "loss"), [("kl", attention_kl_sum), ("mse", attention_mse_sum)])
@settings(deadline=None, max_examples=25)
@given(queries=st.integers(1, 6), keys=st.integers(1, 9), seed=st.integers(0, 999))
def test_value_and_gradient_are_those_of_the_definition(
    kind: str, loss: type, queries: int, keys: int, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    last = torch.randint(keys, (queries, 1), generator=generator)
    hidden = torch.arange(keys) > last
    scores, theirs = (
        torch.randn(queries, keys, generator=generator, dtype=torch.float64).masked_fill(
            hidden, -math.inf
        )
        for _ in range(2)
    )
    teacher = theirs.softmax(-1)
    mine = scores.float().requires_grad_()
    found = loss(mine.softmax(-1), teacher.float())
    found.backward()
    expected = naive(kind, scores.softmax(-1).tolist(), teacher.tolist())
    assert found.item() == pytest.approx(expected, rel=1e-4, abs=1e-5)
    assert mine.grad is not None
    assert torch.all(mine.grad[hidden] == 0)
    step = torch.zeros_like(scores)
    step[0, 0] = 1e-6
    rise, fall = (
        naive(kind, (scores + change).softmax(-1).tolist(), teacher.tolist())
        for change in (step, -step)
    )
    slope = (rise - fall) / 2e-6
    assert mine.grad[0, 0].item() == pytest.approx(slope, rel=2e-2, abs=1e-3)


def test_what_a_sink_takes_is_no_part_of_the_divergence() -> None:
    weights = torch.tensor([[0.1, 0.3, 0.0]])
    assert attention_kl_sum(weights, 2 * weights).item() == pytest.approx(0, abs=1e-6)
    assert attention_mse_sum(weights, 2 * weights).item() == pytest.approx(0.1)


def test_keys_that_the_student_cannot_see_have_a_value_and_no_slope() -> None:
    scores = torch.tensor([[0.0, 0.0, -math.inf]], requires_grad=True)
    found = attention_kl_sum(scores.softmax(-1), torch.tensor([[0.4, 0.1, 0.5]]))
    found.backward()
    least = math.log(torch.finfo(torch.float32).tiny)
    expected = 0.4 * math.log(0.8) + 0.1 * math.log(0.2) + 0.5 * (math.log(0.5) - least)
    assert found.item() == pytest.approx(expected, rel=1e-5)
    assert scores.grad is not None
    assert scores.grad[0].tolist() == pytest.approx([-0.15, 0.15, 0.0], abs=1e-6)


def test_weights_of_other_shapes_are_refused() -> None:
    with pytest.raises(ValueError, match=r"\(3, 4\) and \(3, 5\)"):
        attention_kl_sum(torch.zeros(3, 4), torch.zeros(3, 5))
