"""Best step and early stopping over sequences of validation losses."""

import math

import pytest

from kdscale.config.training import EarlyStoppingConfig
from kdscale.train.early_stopping import ValidationHistory


def follow(losses: list[float], stopping: EarlyStoppingConfig | None) -> list[ValidationHistory]:
    """Return the history after each of the validations, at steps 10, 20, ..."""
    found = [ValidationHistory()]
    for index, loss in enumerate(losses):
        found.append(found[-1].after(10 * (index + 1), loss, stopping))
    return found[1:]


def ends_after(losses: list[float], patience: int, min_delta: float = 0.0) -> int | None:
    """Return the number of validations after which the training ends."""
    stopping = EarlyStoppingConfig(patience=patience, min_delta=min_delta)
    for index, validated in enumerate(follow(losses, stopping)):
        if validated.ends(stopping):
            return index + 1
    return None


def test_the_best_is_the_first_of_the_lowest() -> None:
    found = follow([3.0, 2.0, 2.5, 2.0, 1.9, 4.0], None)
    assert [v.best_step for v in found] == [10, 20, 20, 20, 50, 50]
    assert [v.best_loss for v in found] == [3.0, 2.0, 2.0, 2.0, 1.9, 1.9]


@pytest.mark.parametrize(
    ("losses", "patience", "end"),
    [
        ([3, 2, 1, 0.5], 1, None),
        ([3, 3], 1, 2),  # equal is no gain
        ([3, 2, 2.1, 2.2], 2, 4),
        ([3, 2, 2.1, 1.9, 2.0, 2.0], 2, 6),  # a gain starts the count again
        ([3, 2, 2.1, 2.2], 3, None),
    ],
)
def test_patience_is_counted_in_validations_without_gain(
    losses: list[float], patience: int, end: int | None
) -> None:
    assert ends_after(losses, patience) == end


def test_small_gains_add_up_and_still_make_a_new_best() -> None:
    # Falls of 0.25 where 0.5 is a gain: every second validation is one.
    losses = [3.0, 2.75, 2.5, 2.25, 2.0]
    stopping = EarlyStoppingConfig(patience=2, min_delta=0.5)
    found = follow(losses, stopping)
    assert [v.patience_used for v in found] == [0, 1, 0, 1, 0]
    assert [v.best_step for v in found] == [10, 20, 30, 40, 50]
    assert ends_after([3.0, 2.9, 2.8, 2.7], patience=2, min_delta=0.5) == 3


def test_losses_that_are_not_numbers_end_a_training_and_are_never_best() -> None:
    nan = math.nan
    assert ends_after([nan, nan], patience=2) == 2
    found = follow([nan, 2.0, nan, math.inf], None)
    assert [v.best_step for v in found] == [0, 20, 20, 20]


def test_without_early_stopping_nothing_ends() -> None:
    assert not any(v.ends(None) for v in follow([1.0] * 50, None))
