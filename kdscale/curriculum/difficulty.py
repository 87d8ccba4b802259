"""The difficulty of rows, larger being harder: from single measures, or from several as one.

Single measures are tables [R]: `entropy`, `nll` and `length` are the cache's statistics, `rarity`
is counted from the tokens (`rarity.py`), and the `gap` needs the student. Measures in different
units are combined by their ranks alone: reciprocal rank fusion, Cormack, Clarke, Büttcher, SIGIR
2009; for curricula POCL, arXiv 2506.05695.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from kdscale.config.curriculum import DifficultyName, FusionConfig


def needs(difficulty: DifficultyName | FusionConfig) -> tuple[DifficultyName, ...]:
    """The single measures that `difficulty` is made of."""
    return (difficulty,) if isinstance(difficulty, str) else difficulty.of


def combine(
    difficulty: DifficultyName | FusionConfig, tables: Mapping[str, np.ndarray]
) -> np.ndarray:
    """Difficulty [R] of every row, from the tables [R] of the single measures that it `needs`."""
    parts = [tables[name] for name in needs(difficulty)]
    return parts[0] if isinstance(difficulty, str) else fuse_ranks(parts, difficulty.k)


def fuse_ranks(tables: Sequence[np.ndarray], k: float) -> np.ndarray:
    """[R] float64: minus the sum over the tables [R] of 1 / (k + rank).

    The easiest row of a table has rank 1, and equal rows share the rank of the first of them, so
    that a measure that is the same everywhere decides nothing. float64, because the scores of
    neighbours among a million rows differ in the thirteenth digit.
    """
    return -sum((1 / (k + _ranks(table)) for table in tables), np.zeros(len(tables[0])))


def student_gap(student_nll: np.ndarray, teacher_nll: np.ndarray) -> np.ndarray:
    """[R] float64: what the student's mean negative log-likelihood of a row's labels is above the
    teacher's, nats a token, from [R] each.

    The reducible loss of Mindermann et al., ICML 2022, with the teacher as the reference: on text
    that the teacher wrote its mean is the KL from teacher to student. What the teacher cannot
    predict either is in both terms and does not count as hard.
    """
    return np.asarray(student_nll, np.float64) - teacher_nll


def _ranks(table: np.ndarray) -> np.ndarray:
    """[R] int64: 1 + the rows that are strictly easier."""
    _, place, counts = np.unique(table, return_inverse=True, return_counts=True)
    return (1 + np.cumsum(counts) - counts)[place]
