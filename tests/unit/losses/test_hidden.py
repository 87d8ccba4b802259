"""Losses on hidden states against their definitions, in value and gradient."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kdscale.losses.layers import hidden_cosine_sum, hidden_mse_sum


def naive(kind: str, student: list[list[float]], teacher: list[list[float]]) -> float:
    total = 0.0
    for s, t in zip(student, teacher, strict=True):
        if kind == "mse":
            total += sum((a - b) ** 2 for a, b in zip(s, t, strict=True)) / len(s)
        else:
            inner = sum(a * b for a, b in zip(s, t, strict=True))
            total += 1 - inner / (math.hypot(*s) * math.hypot(*t))
    return total


@pytest.mark.parametrize(("kind", "loss"), [("mse", hidden_mse_sum), ("cosine", hidden_cosine_sum)])
@settings(deadline=None, max_examples=25)
@given(positions=st.integers(1, 6), width=st.integers(1, 9), seed=st.integers(0, 999))
def test_value_and_gradient_are_those_of_the_definition(
    kind: str, loss: type, positions: int, width: int, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    student, teacher = (
        torch.randn(positions, width, generator=generator, dtype=torch.float64) for _ in range(2)
    )
    states = student.float().requires_grad_()
    found = loss(states, teacher.float())
    found.backward()
    expected = naive(kind, student.tolist(), teacher.tolist())
    assert found.item() == pytest.approx(expected, rel=1e-4, abs=1e-5)
    assert states.grad is not None
    for index in range(min(width, 3)):
        step = torch.zeros_like(student)
        step[0, index] = 1e-6
        rise, fall = (naive(kind, (student + s).tolist(), teacher.tolist()) for s in (step, -step))
        slope = (rise - fall) / 2e-6
        assert states.grad[0, index].item() == pytest.approx(slope, rel=2e-2, abs=1e-3)


def test_states_of_other_shapes_are_refused() -> None:
    with pytest.raises(ValueError, match=r"\(3, 4\) and \(3, 5\)"):
        hidden_mse_sum(torch.zeros(3, 4), torch.zeros(3, 5))
