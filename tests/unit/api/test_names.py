"""The public names: few, documented, typed, and imported when they are used."""

import inspect
import subprocess
import sys

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


def test_an_import_of_the_api_needs_no_ray_and_no_deepspeed() -> None:
    code = "import sys, kdscale; [getattr(kdscale, name) for name in kdscale.__all__];"
    code += "print([m for m in ('ray', 'deepspeed', 'wandb') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
