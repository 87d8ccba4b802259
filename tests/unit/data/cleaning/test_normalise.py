"""Cleaning: what it removes, what it keeps, and what it counts."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kdscale.data.cleaning.cleaner import Status, clean, decode, name_hash, text_digest


@pytest.mark.parametrize(
    ("dirty", "expected"),
    [
        ("a\r\nb\rc\n", "a\nb\nc"),
        ("a\x00b\x0cc\x85d\ufeffe\tf", "abcde\tf"),
        ("cafe\u0301", "caf\u00e9"),
        # The accent meets its letter only when the baseline between them is gone.
        ("e\x00\u0301", "\u00e9"),
        ("  a  \t\n\n\tb \n \n", "  a\n\n\tb"),
        (" \n\n a", " a"),
    ],
)
def test_clean(dirty: str, expected: str) -> None:
    assert clean(dirty) == expected


@given(st.text(alphabet=st.characters(exclude_categories=["Cs"])))
def test_cleaning_twice_changes_nothing(text: str) -> None:
    assert clean(clean(text)) == clean(text)


def test_a_long_run_of_blanks_inside_a_line_is_kept_in_linear_time() -> None:
    text = "a" + " " * 300_000 + "b"
    assert clean(text) == text


@pytest.mark.parametrize(
    ("raw", "text", "status"),
    [
        ("été".encode(), "été", Status.KEPT),
        ("été".encode("latin-1"), "", Status.UNDECODABLE),
        ("lone \ud800 surrogate", "", Status.UNDECODABLE),
        (None, "", Status.UNDECODABLE),
        (b"ab   \n\n", "", Status.SHORT),
        ("abc", "abc", Status.KEPT),
    ],
)
def test_decode(raw: bytes | str | None, text: str, status: Status) -> None:
    assert decode(raw, min_characters=3) == (text, status)


def test_hashes_are_those_of_xxh3_and_so_the_same_everywhere() -> None:
    # The reference values of the empty input, from the xxHash specification.
    assert name_hash("") == 0x2D06800538D394C2
    assert text_digest("").hex() == "99aa06d3014798d86001c324468d497f"
