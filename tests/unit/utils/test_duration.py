"""Lengths of time as people write them."""

import pytest

from kdscale.errors import KdscaleError
from kdscale.utils.duration import parse_duration


@pytest.mark.parametrize(
    ("text", "expected"),
    [("0", 0), ("90", 90), ("30s", 30), ("5m", 300), ("2h", 7200), ("1d", 86400), (" 5m ", 300)],
)
def test_seconds(text: str, expected: int) -> None:
    assert parse_duration(text) == expected


@pytest.mark.parametrize("text", ["", "m", "-5m", "5 m", "1.5h", "5min", "1h30m"])
def test_malformed(text: str) -> None:
    with pytest.raises(KdscaleError, match="not a length of time"):
        parse_duration(text)
