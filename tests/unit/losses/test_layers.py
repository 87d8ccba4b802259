"""Losses on hidden states and attention weights against their definitions, value and gradient."""

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kdscale.losses.layers import (
    attention_kl_sum,
    attention_mse_sum,
    hidden_cosine_sum,
    hidden_mse_sum,
)

Loss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
Naive = Callable[[list[float], list[float]], float]
"""The loss of one position, from the student's row and the teacher's."""


def cosine(s: list[float], t: list[float]) -> float:
    inner = sum(a * b for a, b in zip(s, t, strict=True))
    return 1 - inner / (math.hypot(*s) * math.hypot(*t))


def squared(s: list[float], t: list[float]) -> float:
    return sum((a - b) ** 2 for a, b in zip(s, t, strict=True))


def kl(s: list[float], t: list[float]) -> float:
    p, q = [b / sum(t) for b in t], [a / sum(s) for a in s]
    return sum(b * math.log(b / a) for a, b in zip(q, p, strict=True) if b > 0)


HIDDEN: list[tuple[Loss, Naive]] = [
    (hidden_mse_sum, lambda s, t: squared(s, t) / len(s)),
    (hidden_cosine_sum, cosine),
]
ATTENTION: list[tuple[Loss, Naive]] = [(attention_kl_sum, kl), (attention_mse_sum, squared)]


def check(
    found: torch.Tensor,
    gradient: torch.Tensor,
    naive: Callable[[torch.Tensor], float],
    student: torch.Tensor,
    entries: int,
) -> None:
    """Compare a value with `naive` of `student` [P, N] float64, its gradient with differences."""
    assert found.item() == pytest.approx(naive(student), rel=1e-4, abs=1e-5)
    for index in range(entries):
        step = torch.zeros_like(student)
        step[0, index] = 1e-6
        slope = (naive(student + step) - naive(student - step)) / 2e-6
        assert gradient[0, index].item() == pytest.approx(slope, rel=2e-2, abs=1e-3)


@pytest.mark.parametrize(("loss", "naive"), HIDDEN)
@settings(deadline=None, max_examples=25)
@given(positions=st.integers(1, 6), width=st.integers(1, 9), seed=st.integers(0, 999))
def test_hidden_losses_are_their_definitions(
    loss: Loss, naive: Naive, positions: int, width: int, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    student, teacher = (
        torch.randn(positions, width, generator=generator, dtype=torch.float64) for _ in range(2)
    )
    states = student.float().requires_grad_()
    found = loss(states, teacher.float())
    found.backward()
    assert states.grad is not None

    def exact(states: torch.Tensor) -> float:
        return sum(map(naive, states.tolist(), teacher.tolist()))

    check(found, states.grad, exact, student, min(width, 3))


@pytest.mark.parametrize(("loss", "naive"), ATTENTION)
@settings(deadline=None, max_examples=25)
@given(queries=st.integers(1, 6), keys=st.integers(1, 9), seed=st.integers(0, 999))
def test_attention_losses_are_their_definitions(
    loss: Loss, naive: Naive, queries: int, keys: int, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    unseen = torch.arange(keys) > torch.randint(keys, (queries, 1), generator=generator)
    scores, theirs = (
        torch.randn(queries, keys, generator=generator, dtype=torch.float64).masked_fill(
            unseen, -math.inf
        )
        for _ in range(2)
    )
    teacher = theirs.softmax(-1)
    mine = scores.float().requires_grad_()
    found = loss(mine.softmax(-1), teacher.float())
    found.backward()
    assert mine.grad is not None
    assert torch.all(mine.grad[unseen] == 0)

    def exact(scores: torch.Tensor) -> float:
        return sum(map(naive, scores.softmax(-1).tolist(), teacher.tolist()))

    check(found, mine.grad, exact, scores, 1)


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


@pytest.mark.parametrize(("loss", "_"), HIDDEN + ATTENTION)
def test_other_shapes_are_refused(loss: Loss, _: Naive) -> None:
    with pytest.raises(ValueError, match=r"\(3, 4\) and teacher \(3, 5\)"):
        loss(torch.zeros(3, 4), torch.zeros(3, 5))
