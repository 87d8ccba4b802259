"""The public names: few, documented, typed, and imported when they are used."""

import inspect

import pytest

import kdscale


def test_the_names_are_a_dozen_and_all_there() -> None:
    assert len(kdscale.__all__) <= 14
    assert set(kdscale.__all__) <= set(dir(kdscale))
    for name in kdscale.__all__:
        assert inspect.getdoc(getattr(kdscale, name)), name


def test_an_unknown_name_is_none() -> None:
    with pytest.raises(AttributeError, match="no attribute 'open_cash'"):
        kdscale.open_cash  # noqa: B018


def test_types_are_those_that_a_checker_sees() -> None:
    """The branch for type checkers imports from the places that names are looked up in."""
    source = inspect.getsource(kdscale)
    for name, module in kdscale._PLACES.items():
        (line,) = [text for text in source.splitlines() if f"from {module} import " in text]
        assert name in line.replace(",", "").split(), name
