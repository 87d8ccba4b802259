"""The lines of a report's charts, from the metrics that the stages logged."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Literal

from kdscale.report import facts
from kdscale.report.load import Point, ReportData

STEP = "optimiser step"
MAX_POINTS = 300
"""Most points of a line: more than the pixels can show only make the file heavy."""


@dataclass(frozen=True)
class Series:
    """One line of a chart.

    `strong` has markers, `plain` none, `faint` lies behind the others, and a `level` is the value
    of its one point, all across.
    """

    name: str
    role: str  # a key of charts.MARKERS
    points: Sequence[Point]
    kind: Literal["strong", "plain", "faint", "level"] = "strong"
    label: str = ""  # in the legend, where `name` is longer than needed
    tips: Sequence[str] = ()  # shown on hover, one a point; else name and values

    def finite(self) -> list[Point]:
        """Return the points that can be drawn."""
        return [(x, y) for x, y in self.points if math.isfinite(x) and math.isfinite(y)]


def losses(run: ReportData) -> list[Series]:
    """Return student and baseline, training and validation, and the teacher's final loss."""
    series = []
    for stage, role in (("distill", "student"), ("baseline", "baseline")):
        # Where it is logged: the student's own `train/loss` mixes in the distillation loss.
        key = "train/ce_loss" if run.series(stage, "train/ce_loss") else "train/loss"
        series.append(Series(f"{role}, train", role, smooth(run.series(stage, key)), "faint"))
        validation = run.series(stage, "validation/loss")
        series.append(Series(f"{role}, validation", role, validation, label=role))
    teacher, student = (facts.score(run.results, m, "validation") for m in ("teacher", "student"))
    if teacher:
        # On the same text: its tokens may be others than the student's.
        count = student["tokens"] if student and "alignment" in run.results else teacher["tokens"]
        level = [(0.0, teacher["loss"] * teacher["tokens"] / count)]
        series.append(Series("teacher, evaluated", "teacher", level, "level", label="teacher"))
    return series


def teacher_losses(run: ReportData) -> list[Series]:
    """Return the teacher's training and validation loss."""
    return [
        Series("train", "teacher", smooth(run.series("teacher", "train/loss")), "faint"),
        Series("validation", "teacher", run.series("teacher", "validation/loss")),
    ]


def divergence(run: ReportData) -> list[Series]:
    """Return the student's KL to its teacher in training."""
    return [Series("train", "student", smooth(run.series("distill", "train/kl")), "plain")]


def learning_rates(run: ReportData) -> list[Series]:
    """Return the learning rate of the student, which is the baseline's too, and of the teacher."""
    return [
        Series(role, role, run.series(stage, "lr"), "plain")
        for stage, role in (("distill", "student"), ("teacher", "teacher"))
    ]


def gradient_norms(run: ReportData) -> list[Series]:
    """Return the gradient's norm before clipping, of student, baseline and teacher."""
    stages = {"student": "distill", "baseline": "baseline", "teacher": "teacher"}
    return [
        Series(role, role, smooth(run.series(stage, "train/gradient_norm")), "plain")
        for role, stage in stages.items()
    ]


def shares_of_sequences(run: ReportData) -> list[Series]:
    """Return the share of sequences in the curriculum's pool, and the share seen so far."""
    return [
        Series("in the pool", "student", run.series("distill", "curriculum/competence"), "plain"),
        Series("seen", "second", run.series("distill", "curriculum/unique_seen_share"), "plain"),
    ]


def difficulty(run: ReportData) -> list[Series]:
    """Return the mean difficulty of a batch."""
    points = smooth(run.series("distill", "curriculum/mean_difficulty"))
    return [Series("mean of a batch", "student", points, "plain")]


def smooth(points: Sequence[Point], share: float = 0.05) -> list[Point]:
    """Return the centred moving mean over `share` of the points.

    Values that are not finite stay as they are and do not spread.
    """
    reach = int(len(points) * share / 2)
    finite = [math.isfinite(y) for _, y in points]
    # Running totals: a window would cost the square of a long run's lines.
    counts = [0, *accumulate(map(int, finite))]
    totals = [0.0, *accumulate(y if ok else 0.0 for (_, y), ok in zip(points, finite, strict=True))]
    means = []
    for index, (x, y) in enumerate(points):
        low, high = max(0, index - reach), min(len(points), index + reach + 1)
        count, total = counts[high] - counts[low], totals[high] - totals[low]
        means.append((x, total / count if finite[index] else y))
    return means


def thin(points: Sequence[Point], limit: int = MAX_POINTS) -> list[Point]:
    """Return at most `limit` of the points, evenly chosen, with the first and the last."""
    if len(points) <= limit:
        return list(points)
    return [points[round(i * (len(points) - 1) / (limit - 1))] for i in range(limit)]
