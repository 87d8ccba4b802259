"""Errors that a user reads."""

from kdscale.errors import last_line


def test_the_last_line_of_a_traceback_is_what_was_raised() -> None:
    error = RuntimeError("Traceback (most recent call last):\n  File x\nValueError: seven\n\n")
    assert last_line(error) == last_line(str(error)) == "ValueError: seven"
    assert last_line(RuntimeError()) == "RuntimeError"
    assert last_line("\n") == ""
