"""Difficulties that ask for labels, on rows that have none."""

from pathlib import Path

import numpy as np
import pytest

from kdscale.cache.read.reader import CacheReader
from kdscale.config.curriculum import CurriculumConfig
from kdscale.distill.curriculum import difficulty
from kdscale.distributed.rank import current_rank
from kdscale.errors import KdscaleError
from kdscale.store import open_store
from tests.unit.cache.planted import VOCAB, make_planted


@pytest.mark.parametrize("name", ["nll", "gap", "entropy"])
def test_rows_without_labels_cannot_be_ranked_by_them(tmp_path: Path, name: str) -> None:
    planted = make_planted(open_store(str(tmp_path)), labelled=True)
    planted.stats.nll[[3, 4]] = np.nan
    reader = CacheReader(planted.publish().store)
    config = CurriculumConfig.model_validate({"difficulty": name, "warmup_share": 0.25})
    if name == "entropy":
        found = difficulty(config, reader, current_rank(), VOCAB)
        assert np.array_equal(found, planted.stats.entropy)
        return
    with pytest.raises(KdscaleError, match="2 of 23 cached rows have no label"):
        difficulty(config, reader, current_rank(), VOCAB, lambda: np.zeros(23))
