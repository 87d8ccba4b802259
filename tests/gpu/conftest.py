"""Fixtures of tests on fake CUDA tensors."""

from collections.abc import Iterator

import pytest

from tests.gpu.fake_cuda import Record, fake_cuda, why_not


@pytest.fixture(scope="session")
def guard() -> None:
    """Build and load the device guard, once a session."""
    if reason := why_not():
        pytest.skip(reason)


@pytest.fixture
def record(guard: None) -> Iterator[Record]:
    """Run the test on fake CUDA tensors."""
    with fake_cuda() as found:
        yield found
