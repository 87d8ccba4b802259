"""The planted cache, in a folder of its own."""

from pathlib import Path
from typing import Any

import pytest

from kdscale.store import open_store
from tests.unit.cache.planted import Plant, Planted, make_planted


@pytest.fixture
def plant(tmp_path: Path) -> Plant:
    """`make_planted`, by default in a fresh local store."""

    def make(**options: Any) -> Planted:
        return make_planted(**{"store": open_store(str(tmp_path / "cache")), **options})

    return make
