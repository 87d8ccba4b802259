"""The temperature from sums at a few points, against a minimiser that has all logits."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kdscale.evaluate.classification import calibration_error, fit_temperature
from kdscale.evaluate.metrics import LanguageModelSums
from kdscale.evaluate.temperature import TemperatureSums

P, V = 600, 40


def sample(sharpness: float, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return logits `sharpness` times what the labels were drawn from.

    The best temperature is about that number.
    """
    generator = torch.Generator().manual_seed(seed)
    true = 2 * torch.randn(P, V, generator=generator)
    labels = torch.multinomial(true.softmax(-1), 1, generator=generator)[:, 0]
    return sharpness * true + 100 * torch.randn(P, 1, generator=generator), labels


@settings(deadline=None, max_examples=25)
@given(sharpness=st.floats(0.35, 3.0), seed=st.integers(0, 1000))
def test_it_is_the_minimum_of_the_loss(sharpness: float, seed: int) -> None:
    logits, labels = sample(sharpness, seed)
    sums = TemperatureSums()
    sums.update(logits, labels)
    expected = fit_temperature(logits.double().numpy(), labels.numpy())
    assert sums.temperature() == pytest.approx(expected, rel=2e-3)


def test_padding_has_no_part_and_halves_add_up() -> None:
    logits, labels = sample(1.7, 0)
    whole, total = TemperatureSums(), TemperatureSums()
    whole.update(logits, labels)
    padded = torch.cat([logits, torch.full((P, 3), -math.inf)], dim=1)
    halves = [TemperatureSums(), TemperatureSums()]
    halves[0].update(padded[:100], labels[:100])
    halves[1].update(padded[100:], labels[100:])
    total.load(halves[0].state() + halves[1].state())
    assert total.temperature() == pytest.approx(whole.temperature(), rel=1e-6)


def test_beyond_its_bounds_it_is_the_bound() -> None:
    for sharpness, expected in ((40.0, 4.0), (0.01, 0.25)):
        sums = TemperatureSums()
        sums.update(*sample(sharpness, 1))
        assert sums.temperature() == pytest.approx(expected)
    broken = TemperatureSums()
    broken.update(torch.full((2, 4), math.nan), torch.tensor([0, 1]))
    assert broken.temperature() == 1.0


def test_the_scaled_error_is_that_of_divided_logits() -> None:
    logits, labels = sample(2.0, 2)
    sums = LanguageModelSums(temperature=2.0)
    sums.update(logits[:50], labels[:50])
    sums.update(logits[50:], labels[50:])
    got = sums.metrics()
    values, known = logits.numpy().astype(np.float64), labels.numpy()
    assert got["temperature"] == 2.0
    assert got["ece"] == pytest.approx(calibration_error(values, known), abs=1e-5)
    assert got["ece_scaled"] == pytest.approx(calibration_error(values / 2, known), abs=1e-5)
    assert got["ece_scaled"] < got["ece"]
