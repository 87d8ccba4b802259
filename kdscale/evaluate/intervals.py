"""Confidence intervals: percentiles of the bootstrap over sequences, Wilson's, and of medians.

Efron and Tibshirani, "An Introduction to the Bootstrap", 1993, chapter 13. Every draw takes as many
sequences as there are, with replacement, and the same ones for all models, so that differences
between models are not blurred by those between sequences. All figures are functions of sums over
sequences, so that a draw is a product with the number of times that each was drawn.

The bootstrap knows only what happened: of a share without an error every draw is the same. Shares
of sequences have Wilson's interval (JASA 22, 1927) instead, or where the draws are all the same.
The median of repeated measurements has that of its order statistics.
"""

from collections.abc import Mapping

import numpy as np
from scipy.stats import binom, norm

from kdscale.evaluate.metrics import AGREED, BYTES, KL, KL_BACK, LOSS, OVERLAP, TOKENS
from kdscale.evaluate.schema import Interval

DRAWS = 1000
LEVEL = 0.95


def draw_counts(rows: int, seed: int = 0) -> np.ndarray:
    """Return how often each row is in each draw: [DRAWS, rows] float64."""
    random = np.random.default_rng(seed)
    return random.multinomial(rows, np.full(rows, 1 / rows), size=DRAWS).astype(np.float64)


def interval(values: np.ndarray) -> Interval:
    """Return the middle LEVEL of the values [DRAWS] of a figure."""
    if not np.isfinite(values).all():
        return None
    low, high = np.quantile(values, [(1 - LEVEL) / 2, (1 + LEVEL) / 2]).tolist()
    return [low, high]


def wilson_interval(share: float, rows: int) -> Interval:
    """Return Wilson's interval of the chance behind a `share` of `rows` independent rows."""
    if rows == 0 or not np.isfinite(share):
        return None
    z2 = float(norm.ppf((1 + LEVEL) / 2)) ** 2
    centre = (share + z2 / (2 * rows)) / (1 + z2 / rows)
    half = (z2 * (share * (1 - share) + z2 / (4 * rows)) / rows) ** 0.5 / (1 + z2 / rows)
    # The share itself is within, where rounding would leave 0 or 1 out.
    return [min(share, max(0.0, centre - half)), max(share, min(1.0, centre + half))]


def share_interval(values: np.ndarray, rows: int) -> Interval:
    """Return the interval of a figure between 0 and 1.

    `interval`, and Wilson's over as many rows where all values [DRAWS] are the same, as without any
    error.
    """
    found = interval(values)
    if found is not None and np.ptp(values) < 1e-12:
        return wilson_interval(float(values[0]), rows)
    return found


def median_interval(values: np.ndarray) -> Interval:
    """Return the interval of the median behind [N] measurements, of any distribution.

    Two of the values, with a chance of LEVEL or more. None of fewer than 6.
    """
    # The bound's place from either end: fewer values than that are beyond the median with a chance
    # below (1 - LEVEL) / 2, as each is above it or below it like the toss of a coin.
    place = int(binom.ppf((1 - LEVEL) / 2, len(values), 0.5))
    ordered = np.sort(values)
    return [float(ordered[place - 1]), float(ordered[-place])] if place > 0 else None


def language_model_intervals(counts: np.ndarray, by_row: np.ndarray) -> dict[str, Interval]:
    """Return the intervals of the figures that have the same names in DomainMetrics.

    `by_row` is [rows, 8], see `LanguageModelSums.by_row`.
    """
    sums = counts @ by_row
    found = {"loss": interval(_quotient(sums, LOSS, TOKENS))}
    if by_row[:, BYTES].any():
        found["bits_per_byte"] = interval(_quotient(sums, LOSS, BYTES) / np.log(2))
    if by_row[:, AGREED].any() or by_row[:, KL].any():
        rows = len(by_row)
        found["agreement_top1"] = share_interval(_quotient(sums, AGREED, TOKENS), rows)
        found["overlap_top10"] = share_interval(_quotient(sums, OVERLAP, TOKENS), rows)
        found["kl_teacher_student"] = interval(_quotient(sums, KL, TOKENS))
        found["kl_student_teacher"] = interval(_quotient(sums, KL_BACK, TOKENS))
    return found


def gap_interval(
    counts: np.ndarray, by_row: Mapping[str, np.ndarray], under: int = TOKENS
) -> Interval:
    """Return the interval of the gap recovered in loss a token, or in what `under` says.

    `by_row` is [rows, 8] for teacher, student and baseline.
    """
    if not {"teacher", "student", "baseline"} <= by_row.keys():
        return None
    teacher, student, baseline = (
        _quotient(counts @ by_row[name], LOSS, under) for name in ("teacher", "student", "baseline")
    )
    gap = baseline - teacher
    return interval((baseline - student) / gap) if (gap > 0).all() else None


def _quotient(sums: np.ndarray, over: int, under: int) -> np.ndarray:
    with np.errstate(divide="ignore", invalid="ignore"):
        found: np.ndarray = sums[:, over] / sums[:, under]
    return found
