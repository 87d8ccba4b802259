"""Tables as text: columns where they fit, else lists that break between cells only."""

import pytest

from kdscale.utils.text_table import aligned, wrapped

ROWS = [
    ["Stage", "time taken", "device hours"],
    ["cache", "5.0-10 d", "7.7k-15k"],
    ["a stage of a long name", "", "1 min 02 s"],
]


def test_columns_are_as_wide_as_their_widest_cell() -> None:
    assert aligned(ROWS).splitlines() == [
        "Stage                   time taken  device hours",
        "cache                     5.0-10 d      7.7k-15k",
        "a stage of a long name                1 min 02 s",
    ]
    assert aligned(ROWS, 48) == aligned(ROWS)


@pytest.mark.parametrize("width", [24, 30, 47])
def test_what_does_not_fit_is_a_list(width: int) -> None:
    lines = aligned(ROWS, width).splitlines()
    assert lines[0] == "Stage"
    assert max(map(len, lines)) <= width + 4 * (width == 24)
    text = "\n".join(lines)
    for cell in ("time taken: 5.0-10 d", "device hours: 7.7k-15k", "device hours: 1 min 02 s"):
        assert cell in text
    assert "time taken: ;" not in text


def test_a_paragraph_breaks_at_spaces_only() -> None:
    text = wrapped("use --set distill.training.steps=100 twice-or-more", 30, "  ")
    assert max(map(len, text.splitlines())) <= 30
    assert "distill.training.steps=100" in text
    assert wrapped("x " * 100, None) == "x " * 100
