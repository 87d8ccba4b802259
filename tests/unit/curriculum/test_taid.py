"""TAID: the interpolation's update and its target."""

import itertools
import json
import math
from dataclasses import asdict

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kdscale.config.curriculum import TaidConfig
from kdscale.curriculum.taid import TaidState, taid_log_probs, taid_start

STEPS = 50


def run(config: TaidConfig, losses: list[float], state: TaidState, first: int = 0) -> list:
    states = []
    for step, loss in enumerate(losses, start=first):
        state = state.after(config, loss, step, STEPS)
        states.append(state)
    return states


def test_two_updates_by_hand() -> None:
    config = TaidConfig(start=0.4, end=1.0, alpha=0.5, beta=0.9)
    first, second, third = run(config, [4.0, 3.0, 3.3], taid_start(config))
    assert first == TaidState(0.4, 0.0, 4.0)
    # r = 1/4, m = 0.025, t = 0.4 + 0.5 sigmoid(0.025) 0.6.
    assert second.momentum == pytest.approx(0.025)
    assert second.t == pytest.approx(0.4 + 0.5 * 0.6 / (1 + math.exp(-0.025)))
    assert second.previous_loss == 3.0
    # r = -0.1, m = 0.0225 - 0.01.
    assert third.momentum == pytest.approx(0.0125)
    assert third.t == pytest.approx(second.t + 0.5 * (1 - second.t) / (1 + math.exp(-0.0125)))


def test_without_adaption_t_is_the_straight_line() -> None:
    config = TaidConfig(alpha=0.0)
    states = run(config, [1.0] * (STEPS + 1), taid_start(config))
    for step, state in enumerate(states[1:], start=1):
        assert state.t == pytest.approx(0.4 + 0.6 * step / STEPS)
    assert states[-1].t == pytest.approx(1.0)


@given(
    losses=st.lists(st.floats(0, 50), min_size=STEPS, max_size=STEPS),
    alpha=st.floats(0, 1),
    ends=st.tuples(st.floats(0, 0.9), st.floats(0.1, 1)).filter(lambda pair: pair[0] <= pair[1]),
)
def test_t_never_falls_nor_leaves_its_range_nor_lags_behind_the_line(
    losses: list[float], alpha: float, ends: tuple[float, float]
) -> None:
    start, end = ends
    config = TaidConfig(start=start, end=end, alpha=alpha)
    values = [state.t for state in run(config, losses, taid_start(config))]
    assert all(a <= b for a, b in itertools.pairwise([start, *values]))
    assert max(values) <= end
    for step, value in enumerate(values[1:], start=1):
        assert value >= min(end, start + (end - start) * step / STEPS)


def test_a_falling_loss_moves_faster_than_a_rising_one() -> None:
    config = TaidConfig(start=0.0, alpha=0.2, beta=0.0)
    falling = run(config, [8.0, 4.0, 2.0], taid_start(config))[-1]
    rising = run(config, [2.0, 4.0, 8.0], taid_start(config))[-1]
    assert falling.t > rising.t > 0.04


def test_a_loss_of_nothing_does_not_overflow() -> None:
    config = TaidConfig()
    state = run(config, [0.0, 10.0], taid_start(config))[-1]
    assert state.momentum < -1e13
    assert state.t == pytest.approx(0.4 + 0.6 / STEPS)


def test_a_state_goes_through_json_in_the_middle_of_a_run() -> None:
    config = TaidConfig(alpha=0.05)
    losses = [5.0 - 0.07 * step + 0.3 * (step % 3) for step in range(STEPS)]
    whole = run(config, losses, taid_start(config))
    for cut in (0, 1, 17):
        before = whole[cut - 1] if cut else taid_start(config)
        stored = json.dumps(asdict(before))
        resumed = run(config, losses[cut:], TaidState(**json.loads(stored)), first=cut)
        assert resumed == whole[cut:]


def naive_target(student: list[float], teacher: list[float], t: float) -> list[float]:
    mixed = [math.exp((1 - t) * s + t * z) for s, z in zip(student, teacher, strict=True)]
    return [value / sum(mixed) for value in mixed]


@pytest.mark.parametrize("t", [0.0, 0.4, 0.75, 1.0])
def test_the_target_is_a_softmax_between_the_logits(t: float) -> None:
    torch.manual_seed(0)
    student, teacher = 3 * torch.randn(4, 9), 3 * torch.randn(4, 9)
    found = taid_log_probs(student, teacher, t)
    assert found.dtype == torch.float32
    for position in range(4):
        expected = naive_target(student[position].tolist(), teacher[position].tolist(), t)
        assert found[position].exp().tolist() == pytest.approx(expected, rel=1e-4)
    # Log-probabilities are logits shifted by a constant a position.
    shifted = taid_log_probs(student.log_softmax(-1), teacher.log_softmax(-1), t)
    assert torch.allclose(shifted, found, atol=1e-5)


def test_the_ends_are_student_and_teacher() -> None:
    torch.manual_seed(0)
    student, teacher = torch.randn(4, 9), torch.randn(4, 9)
    assert torch.allclose(taid_log_probs(student, teacher, 0.0), student.log_softmax(-1))
    assert torch.allclose(taid_log_probs(student, teacher, 1.0), teacher.log_softmax(-1))


@pytest.mark.parametrize("t", [0.0, 0.5, 1.0])
def test_padding_of_the_teacher_has_no_probability(t: float) -> None:
    student, teacher = torch.randn(2, 6), torch.randn(2, 6)
    teacher[:, 4:] = -math.inf
    found = taid_log_probs(student, teacher, t)
    assert torch.all(found[:, 4:] == -math.inf)
    known = taid_log_probs(student[:, :4], teacher[:, :4], t)
    assert torch.allclose(found[:, :4], known)


def test_the_gradient_of_its_kl_is_that_of_a_fixed_target() -> None:
    torch.manual_seed(0)
    student, teacher = torch.randn(3, 7, requires_grad=True), torch.randn(3, 7)
    target = taid_log_probs(student, teacher, 0.5)
    assert not target.requires_grad
    torch.nn.functional.kl_div(
        student.log_softmax(-1), target, log_target=True, reduction="sum"
    ).backward()
    assert student.grad is not None
    assert torch.allclose(student.grad, student.softmax(-1) - target.exp(), atol=1e-6)
