"""The tokenizer of the sets."""

from pathlib import Path

import pytest

from tests.unit.importing.sets import tokenizer_folder


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a tokenizer of V ids."""
    return tokenizer_folder(tmp_path_factory.mktemp("tokenizer") / "own")
