"""TAID: the update of t, its target, and its course over a training."""

import itertools
import json
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kdscale.config.online import TaidConfig
from kdscale.distill.taid import Taid, TaidState
from kdscale.losses.dense import taid_log_probs

STEPS = 50
CONFIG = TaidConfig(start=0.2, alpha=0.3, beta=0.5)


def run(config: TaidConfig, losses: list[float]) -> list[TaidState]:
    """Return the states after each step."""
    state, states = TaidState(config.start), []
    for step, loss in enumerate(losses):
        state = state.after(config, loss, step, STEPS)
        states.append(state)
    return states


def line(start: float, step: int) -> float:
    """Return the line from `start` at the first step to 1 at the last."""
    return start + (1 - start) * step / (STEPS - 1)


def test_two_updates_by_hand() -> None:
    config = TaidConfig(start=0.4, alpha=0.5, beta=0.9)
    first, second, third = run(config, [4.0, 3.0, 3.3])
    assert first == TaidState(pytest.approx(0.4 + 0.6 / 49), 0.0, 4.0)
    # r = 1/4, m = 0.025.
    assert second.momentum == pytest.approx(0.025)
    assert second.t == pytest.approx(first.t + 0.5 * (1 - first.t) / (1 + math.exp(-0.025)))
    assert second.loss == 3.0
    # r = -0.1, m = 0.0225 - 0.01.
    assert third.momentum == pytest.approx(0.0125)
    assert third.t == pytest.approx(second.t + 0.5 * (1 - second.t) / (1 + math.exp(-0.0125)))


def test_without_adaption_t_is_the_straight_line() -> None:
    states = run(TaidConfig(alpha=0.0), [1.0] * STEPS)
    for step, state in enumerate(states[:-1], start=1):
        assert state.t == pytest.approx(line(0.4, step))
    # Of the last step, and of one after it.
    assert states[-2].t == states[-1].t == 1.0


def test_a_training_of_one_step_has_no_line() -> None:
    assert TaidState(0.4).after(TaidConfig(), 2.0, 0, 1).t == 1.0


@settings(deadline=None)
@given(
    losses=st.lists(st.floats(0, 50) | st.just(math.nan), min_size=STEPS, max_size=STEPS),
    alpha=st.floats(0, 1),
    start=st.floats(0, 0.9),
)
def test_t_never_falls_nor_leaves_its_range_nor_lags_behind_the_line(
    losses: list[float], alpha: float, start: float
) -> None:
    config = TaidConfig(start=start, alpha=alpha)
    values = [start, *(state.t for state in run(config, losses))]
    assert all(a <= b for a, b in itertools.pairwise(values))
    assert max(values) <= 1
    for step, value in enumerate(values[:STEPS]):
        assert value >= line(start, step) - 1e-12


def test_a_falling_loss_moves_faster_than_a_rising_one() -> None:
    config = TaidConfig(start=0.0, alpha=0.2, beta=0.0)
    falling = run(config, [8.0, 4.0, 2.0])[-1]
    rising = run(config, [2.0, 4.0, 8.0])[-1]
    assert falling.t > rising.t > line(0.0, 3)


def test_a_loss_of_nothing_does_not_overflow() -> None:
    state = run(TaidConfig(), [0.0, 10.0])[-1]
    assert state.momentum < -1e13
    assert state.t == pytest.approx(line(0.4, 2))


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


def test_no_gradient_goes_through_the_target() -> None:
    student, teacher = torch.randn(3, 7, requires_grad=True), torch.randn(3, 7)
    assert not taid_log_probs(student, teacher, 0.5).requires_grad


def test_t_follows_the_loss_on_its_own_targets() -> None:
    taid, state = Taid(CONFIG, 9), TaidState(0.2)
    assert taid.t == 0.2
    for step, loss in enumerate((4.0, 3.5, 3.7, 2.0)):
        kept = taid.after(step, {"loss": 100.0, "kl": 50.0, "taid_loss": loss})
        state = state.after(CONFIG, loss, step, 9)
        assert taid.t == kept["t"] == state.t


def test_what_is_kept_goes_through_json_and_comes_back_to_the_bit() -> None:
    taid = Taid(CONFIG, 9)
    kept = [taid.after(step, {"taid_loss": 1 / (step + 3)}) for step in range(5)]
    for step in range(4):
        other = Taid(CONFIG, 9)
        other.restore(json.loads(json.dumps(kept[step])))
        assert other.t == kept[step]["t"]
        assert other.after(step + 1, {"taid_loss": 1 / (step + 4)}) == kept[step + 1]
    taid.restore({})
    assert taid.t == 0.2
