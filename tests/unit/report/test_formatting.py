"""Numbers as text, at every boundary of a unit."""

import math
from collections.abc import Callable

import pytest

from kdscale.report import formatting as units


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (7, "7"),
        (999, "999"),
        (1000, "1.00 k"),
        (9_994, "9.99 k"),
        (9_996, "10.0 k"),
        (418_656, "419 k"),
        (999_499, "999 k"),
        (999_600, "1.00 M"),
        (3_736_832, "3.74 M"),
        (671_000_000_000, "671 B"),
        (5e15, "5000 T"),
        (12.5, "12.5"),
    ],
)
def test_count(value: float, text: str) -> None:
    assert units.count(value) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.1234, "+0.123"),
        (-12.5, "-12.500"),
        (0.0, "+0.000"),
        (-0.0004, "+0.000"),
        (None, "–"),
        (math.nan, "NaN"),
        (-math.inf, "-∞"),
    ],
)
def test_signed(value: float | None, text: str) -> None:
    assert units.signed(value) == text


@pytest.mark.parametrize(
    ("value", "text"), [(512, "512 B"), (3_214_336, "3.07 MiB"), (17_179_869_184, "16.0 GiB")]
)
def test_size(value: float, text: str) -> None:
    assert units.size(value) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0.0 s"),
        (21.44, "21.4 s"),
        (59.96, "1 min 00 s"),
        (231, "3 min 51 s"),
        (3599.7, "1 h 00 min"),
        (90_000, "25 h 00 min"),
    ],
)
def test_duration(value: float, text: str) -> None:
    assert units.duration(value) == text


@pytest.mark.parametrize("form", [units.count, units.size, units.duration])
def test_what_is_not_finite_is_said(form: Callable[[float], str]) -> None:
    assert [form(v) for v in (math.nan, math.inf, -math.inf)] == ["NaN", "∞", "-∞"]


def test_number_and_percent() -> None:
    assert units.number(1234.5678, 2) == "1,234.57"
    assert [units.number(v) for v in (None, math.nan, math.inf, -math.inf)] == [
        "–",
        "NaN",
        "∞",
        "-∞",
    ]
    assert units.percent(0.29912) == "29.9%"
    assert units.percent(None) == "–"
