"""Difficulties that read the rows or ask the student: the same on one rank and on two."""

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from kdscale.cache.read.reader import CacheReader
from kdscale.config.curriculum import CurriculumConfig
from kdscale.curriculum.difficulty import fuse_ranks
from kdscale.distill.curriculum import difficulty, measure_gap
from kdscale.distributed.rank import current_rank
from kdscale.models.forward import compute_logits, row_tensors
from kdscale.models.head import ModelWithHead
from kdscale.store import open_store
from tests.ranks import run_ranks
from tests.unit.cache.planted import VOCAB, make_planted
from tests.unit.distill.students import make_student


def measured(folder: str) -> dict[str, list[float]]:
    """Of every row: rarity, the student's gap, and both with the entropy as one."""
    worker, reader = current_rank(), CacheReader(open_store(folder))
    student = make_student(3)
    student(ModelWithHead.detect_head, worker.device)
    student.train()

    def gap() -> np.ndarray:
        return measure_gap(student, reader, worker, micro_batch_size=4)

    def of(measure: Any) -> list[float]:
        config = CurriculumConfig.model_validate({"difficulty": measure, "warmup_share": 1})
        return difficulty(config, reader, worker, VOCAB, gap).tolist()

    fusion = {"kind": "fusion", "of": ["rarity", "gap", "entropy"]}
    found = {"rarity": of("rarity"), "gap": of("gap"), "fusion": of(fusion)}
    assert student.training
    return found


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    where: Path = tmp_path_factory.mktemp("cache")
    make_planted(open_store(str(where))).publish()
    return str(where)


def test_difficulties_are_what_their_names_say(folder: str) -> None:
    found = measured(folder)
    reader = CacheReader(open_store(folder))
    rows, statistics = reader.read(np.arange(23)).rows, reader.statistics
    targets = [row[1:][mask[:-1]] for row, mask in zip(rows.input_ids, rows.loss_mask, strict=True)]
    counts = Counter(np.concatenate(targets).tolist())
    rarity = [np.mean([-np.log(counts[t] / counts.total()) for t in row]) for row in targets]
    assert found["rarity"] == pytest.approx(rarity, rel=1e-5)

    ids, segments, mask, *_ = row_tensors(rows, torch.device("cpu"))
    with torch.no_grad():
        logits = compute_logits(make_student(3).model.eval(), ids, segments, VOCAB)
    losses = torch.nn.functional.cross_entropy(
        logits.transpose(1, 2), torch.roll(ids, -1, dims=1), reduction="none"
    )
    own = torch.stack([loss[row].mean() for loss, row in zip(losses, mask, strict=True)])
    assert found["gap"] == pytest.approx((own.numpy() - statistics.nll).tolist(), rel=1e-4)
    tables = [np.array(found["rarity"]), np.array(found["gap"]), statistics.entropy]
    assert found["fusion"] == pytest.approx(fuse_ranks(tables, 60).tolist())


@pytest.mark.dist
def test_two_ranks_share_the_rows_and_find_the_same(folder: str) -> None:
    alone = measured(folder)
    for found in run_ranks(measured, 2, folder):
        for name, values in alone.items():
            assert found[name] == pytest.approx(values, rel=1e-5), name
