"""Loops over single numbers at the speed of C, where NumPy would need a dozen passes.

Numba compiles such a function at its first call and keeps the machine code beside the source, or in
the user's cache folder. The function runs without the interpreter's lock, so threads decode side by
side. It has no bounds checks, so its callers check sizes first.
"""

from collections.abc import Callable
from typing import TypeVar

from numba import njit

Function = TypeVar("Function", bound=Callable[..., object])


def compiled(function: Function) -> Function:
    """Return `function` compiled. It takes and returns numbers, arrays and plain tuples of them.

    The kept machine code depends neither on other files nor on the names of classes: a function
    may use no code and no class of ours beyond its own file, or it would survive their change.
    """
    try:
        return njit(nogil=True, cache=True)(function)
    except RuntimeError:
        # Neither folder can be written: each process compiles for itself, which takes seconds.
        return njit(nogil=True)(function)


@compiled
def _nothing() -> None:
    """Numba imports most of itself at the first call of any function: that is done now."""


_nothing()
