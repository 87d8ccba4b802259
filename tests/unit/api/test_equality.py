"""A loop and a Trainer give the losses of kdscale's own training, step by step."""

from pathlib import Path

import pytest

from tests.training import Losses, assert_equal, by_kdscale, by_loop, by_trainer, plant


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("cache")
    plant(folder)
    return str(folder)


@pytest.fixture(scope="module")
def expected(cache: str) -> Losses:
    found = by_kdscale(cache)
    assert found[-1]["loss"] < 0.96 * found[0]["loss"], "it has to learn something"
    return found


def test_a_loop_gives_the_losses_of_kdscales_training(cache: str, expected: Losses) -> None:
    assert_equal(by_loop(cache), expected, rel=1e-6)


def test_a_trainer_gives_the_losses_of_kdscales_training(
    cache: str, expected: Losses, tmp_path: Path
) -> None:
    assert_equal(by_trainer(cache, str(tmp_path)), expected, rel=1e-6)
