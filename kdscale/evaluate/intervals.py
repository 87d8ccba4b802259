"""How sure a figure is: percentile intervals of the bootstrap over rows.

Efron and Tibshirani, "An Introduction to the Bootstrap", 1993, chapter 13. Every draw takes as many
rows as there are, with replacement, and the same ones for all models, so that what models differ by
is not blurred by what rows differ by. All figures are functions of sums over rows, so that a draw
is a product with the number of times that each row was drawn.
"""

from collections.abc import Mapping

import numpy as np

from kdscale.evaluate.metrics import AGREED, BYTES, KL, KL_BACK, LOSS, OVERLAP, TOKENS
from kdscale.evaluate.results import Interval

DRAWS = 1000
LEVEL = 0.95


def draw_counts(rows: int, seed: int = 0) -> np.ndarray:
    """[DRAWS, rows] float64: how often each row is in each draw."""
    random = np.random.default_rng(seed)
    return random.multinomial(rows, np.full(rows, 1 / rows), size=DRAWS).astype(np.float64)


def interval(values: np.ndarray) -> Interval:
    """The middle LEVEL of [DRAWS] values of a figure."""
    if not np.isfinite(values).all():
        return None
    low, high = np.quantile(values, [(1 - LEVEL) / 2, (1 + LEVEL) / 2]).tolist()
    return [low, high]


def language_model_intervals(counts: np.ndarray, by_row: np.ndarray) -> dict[str, Interval]:
    """Of the figures that have the same names in DomainMetrics. `by_row` is [rows, 8], see
    `LanguageModelSums.by_row`."""
    sums = counts @ by_row
    found = {"loss": interval(_quotient(sums, LOSS, TOKENS))}
    if by_row[:, BYTES].any():
        found["bits_per_byte"] = interval(_quotient(sums, LOSS, BYTES) / np.log(2))
    if by_row[:, AGREED].any() or by_row[:, KL].any():
        found["agreement_top1"] = interval(_quotient(sums, AGREED, TOKENS))
        found["overlap_top10"] = interval(_quotient(sums, OVERLAP, TOKENS))
        found["kl_teacher_student"] = interval(_quotient(sums, KL, TOKENS))
        found["kl_student_teacher"] = interval(_quotient(sums, KL_BACK, TOKENS))
    return found


def gap_interval(counts: np.ndarray, by_row: Mapping[str, np.ndarray]) -> Interval:
    """Of the gap recovered in loss. `by_row` is [rows, 8] for teacher, student and control."""
    if "control" not in by_row or "student" not in by_row:
        return None
    teacher, student, control = (
        _quotient(counts @ by_row[name], LOSS, TOKENS) for name in ("teacher", "student", "control")
    )
    gap = control - teacher
    return interval((control - student) / gap) if (gap > 0).all() else None


def _quotient(sums: np.ndarray, over: int, under: int) -> np.ndarray:
    with np.errstate(divide="ignore", invalid="ignore"):
        found: np.ndarray = sums[:, over] / sums[:, under]
    return found
