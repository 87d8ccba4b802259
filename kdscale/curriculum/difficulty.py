"""Difficulty of sequences, larger being harder: single measures, and their combination.

Measures are tables [R] over the R sequences of a cache. `entropy`, `nll` and `length` are the
cache's statistics; `rarity` is counted from the tokens; the `gap` compares student and teacher.
Measures in different units are combined by their ranks alone: reciprocal rank fusion, Cormack,
Clarke, Büttcher, SIGIR 2009; for curricula POCL, arXiv:2506.05695.

Rarity is Platanios et al., NAACL 2019: sum -log p(w) over a sentence, with p the frequency of w in
the corpus. Here it is the mean over a sequence's targets, so that it does not measure length again.
Sequences are read twice, in parts of any size: `count_targets` first, then `row_rarity`.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from kdscale.config.curriculum import DifficultyName, FusionConfig


def needs(difficulty: DifficultyName | FusionConfig) -> tuple[DifficultyName, ...]:
    """Return the single measures that `difficulty` is made of."""
    return (difficulty,) if isinstance(difficulty, str) else difficulty.of


def combine(
    difficulty: DifficultyName | FusionConfig, tables: Mapping[str, np.ndarray]
) -> np.ndarray:
    """Return the difficulty [R] from the tables [R] of the single measures that it `needs`."""
    parts = [tables[name] for name in needs(difficulty)]
    return parts[0] if isinstance(difficulty, str) else fuse_ranks(parts, difficulty.k)


def fuse_ranks(tables: Sequence[np.ndarray], k: float) -> np.ndarray:
    """Return minus the sum over the tables [R] of 1 / (k + rank), [R] float64.

    The easiest sequence of a table has rank 1, and equal ones share the rank of the first of them,
    so that a measure that is the same everywhere decides nothing. float64, because the scores of
    neighbours among a million sequences differ in the thirteenth digit.
    """
    return -sum((1 / (k + _ranks(table)) for table in tables), np.zeros(len(tables[0])))


def student_gap(student_nll: np.ndarray, teacher_nll: np.ndarray) -> np.ndarray:
    """Return the student's mean loss on a sequence's labels less the teacher's, [R] float64.

    Both are [R], nats a token. The reducible loss of Mindermann et al., ICML 2022, with the teacher
    as the reference: on text that the teacher wrote its mean is the KL from teacher to student.
    What the teacher cannot predict either is in both terms and does not count as hard.
    """
    return np.asarray(student_nll, np.float64) - teacher_nll


def count_targets(counts: np.ndarray, labels: np.ndarray, loss_mask: np.ndarray) -> None:
    """Add the targets of sequences to `counts` ([V] int64), in place.

    `labels` is [B, T] of integers below V, negative where they are not known; `loss_mask` [B, T]
    bool is True where a label is a target.
    """
    targets = labels[loss_mask]
    counts += np.bincount(targets[targets >= 0], minlength=len(counts))


def row_rarity(counts: np.ndarray, labels: np.ndarray, loss_mask: np.ndarray) -> np.ndarray:
    """Return the mean of -log(count / all counts) over each sequence's targets, [B] float32, nats.

    0 for a sequence without targets. `counts` must include these sequences.
    """
    surprise = np.log(max(1, counts.sum())) - np.log(np.maximum(counts, 1))
    mask = loss_mask & (labels >= 0)
    sums = np.where(mask, surprise[np.where(mask, labels, 0)], 0.0).sum(axis=1)
    return (sums / np.maximum(mask.sum(axis=1), 1)).astype(np.float32)


def _ranks(table: np.ndarray) -> np.ndarray:
    """Return 1 + the number of strictly easier sequences, [R] int64."""
    _, place, counts = np.unique(table, return_inverse=True, return_counts=True)
    return (1 + np.cumsum(counts) - counts)[place]
