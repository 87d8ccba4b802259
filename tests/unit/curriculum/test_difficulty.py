"""Difficulties against naive references."""

import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from kdscale.config.curriculum import FusionConfig
from kdscale.curriculum.difficulty import (
    combine,
    count_targets,
    fuse_ranks,
    needs,
    row_rarity,
    student_gap,
)

VOCAB = 11


def test_a_name_is_its_table() -> None:
    tables = {"nll": np.array([2.0, 1.0]), "length": np.array([5, 9])}
    assert needs("nll") == ("nll",)
    assert combine("nll", tables) is tables["nll"]


def test_a_fusion_needs_its_parts() -> None:
    fusion = FusionConfig(kind="fusion", of=("nll", "length"), k=1)
    assert needs(fusion) == ("nll", "length")
    tables = {"nll": np.array([2.0, 1.0, 3.0]), "length": np.array([5, 9, 1])}
    # Ranks 2, 1, 3 and 2, 3, 1.
    expected = [-(1 / 3 + 1 / 3), -(1 / 2 + 1 / 4), -(1 / 4 + 1 / 2)]
    assert combine(fusion, tables) == pytest.approx(expected)


@settings(deadline=None)
@given(
    tables=st.integers(1, 12).flatmap(
        lambda rows: st.lists(
            hnp.arrays(np.float32, rows, elements=st.sampled_from([0.0, 0.5, 1.0, 7.0, -2.0])),
            min_size=2,
            max_size=3,
        )
    ),
    k=st.floats(0.5, 100),
)
def test_fused_ranks_by_counting_easier_rows(tables: list[np.ndarray], k: float) -> None:
    fused = fuse_ranks(tables, k)
    assert fused.dtype == np.float64
    for row in range(len(tables[0])):
        score = 0.0
        for table in tables:
            score += 1 / (k + 1 + sum(1 for value in table if value < table[row]))
        assert fused[row] == pytest.approx(-score)


def test_a_measure_that_is_the_same_everywhere_decides_nothing() -> None:
    nll = np.random.default_rng(0).random(50)
    fused = fuse_ranks([nll, np.full(50, 127)], 60)
    assert np.array_equal(np.argsort(fused), np.argsort(nll))


def test_neighbours_among_a_million_rows_differ() -> None:
    table = np.arange(1_000_000)
    assert np.all(np.diff(fuse_ranks([table, table], 60.0)) > 0)


def test_the_gap_is_what_the_student_lacks() -> None:
    gap = student_gap(np.array([5.0, 2.0], np.float32), np.array([4.5, 0.25], np.float32))
    assert gap.tolist() == [0.5, 1.75]
    assert gap.dtype == np.float64


def rows(seed: int, count: int, length: int) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    ids = generator.integers(0, VOCAB, (count, length)).astype(np.int32)
    mask = generator.random((count, length)) < 0.6
    mask[:, -1] = False
    return ids, mask


@settings(deadline=None)
@given(seed=st.integers(0, 1000), count=st.integers(1, 9), length=st.integers(2, 9))
def test_rarity_token_by_token_and_in_chunks(seed: int, count: int, length: int) -> None:
    ids, mask = rows(seed, count, length)
    targets = [
        [int(ids[row, i + 1]) for i in range(length - 1) if mask[row, i]] for row in range(count)
    ]
    frequency = Counter(token for row in targets for token in row)
    total = sum(frequency.values())
    counts = np.zeros(VOCAB, np.int64)
    labels = np.full_like(ids, -1)
    labels[:, :-1] = ids[:, 1:]
    for start in range(0, count, 4):
        count_targets(counts, labels[start : start + 4], mask[start : start + 4])
    assert counts.tolist() == [frequency[token] for token in range(VOCAB)]
    if total == 0:
        return
    scores = np.concatenate(
        [
            row_rarity(counts, labels[start : start + 4], mask[start : start + 4])
            for start in range(0, count, 4)
        ]
    )
    assert scores.dtype == np.float32
    for row, tokens in enumerate(targets):
        surprises = [-math.log(frequency[token] / total) for token in tokens]
        expected = sum(surprises) / len(surprises) if tokens else 0.0
        assert scores[row] == pytest.approx(expected, rel=1e-5, abs=1e-6)


def test_rarity_of_nothing_is_zero() -> None:
    ids, mask = np.zeros((2, 4), np.int32), np.zeros((2, 4), bool)
    counts = np.zeros(VOCAB, np.int64)
    count_targets(counts, ids, mask)
    assert row_rarity(counts, ids, mask).tolist() == [0.0, 0.0]
