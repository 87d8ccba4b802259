"""Environment variables that a test sets, and those that it finds again."""

import os
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def environment(**values: str) -> Iterator[None]:
    """Set variables, and restore all variables at the end.

    Only those that changed are written: a new variable moves the C library's table, which a thread
    of Ray or of an S3 client may be reading in `getenv`.
    """
    before = dict(os.environ)
    os.environ.update(values)
    try:
        yield
    finally:
        for name in os.environ.keys() - before.keys():
            del os.environ[name]
        for name, value in before.items():
            if os.environ.get(name) != value:
                os.environ[name] = value
