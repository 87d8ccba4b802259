"""State of a training at its end: the slope of its loss, with the noise taken into account.

A straight line is fitted to the last third of the logged values. Its slope's interval is Student's,
with the residuals' correlation from one value to the next taken off the number of values (Santer et
al., "Statistical significance of trends", JGR 105, 2000, section 4): correlated noise looks like a
trend.

Most of that noise is the batches': some sequences are harder than others. The student's KL to its
teacher is its loss on the teacher's distributions without their entropy, which differs from batch
to batch and which no training lowers. So the slope of the student's loss is taken from its KL,
where that was logged, in percent of the loss.
"""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from statistics import median
from typing import Any

from kdscale.report import formatting as units
from kdscale.report.load import Point, ReportData
from kdscale.report.tables import Table

LAST_SHARE = 1 / 3
LEAST_POINTS = 6
FLAT = 0.01
"""A loss that changes by less than this share of itself in a hundred steps, either way, is flat."""

_TRAININGS = {
    "student": ("distill", ("train/ce_loss", "train/loss")),
    "student, KL to the teacher": ("distill", ("train/kl",)),
    "baseline": ("baseline", ("train/ce_loss", "train/loss")),
    "teacher": ("teacher", ("train/ce_loss", "train/loss")),
}


@dataclass(frozen=True)
class Trend:
    """The end of a line of losses: its value there, and its change in a hundred steps."""

    steps: int  # that the fit covers
    end: float  # of the line
    change: float  # share of `end` in a hundred steps; negative where it falls
    interval: tuple[float, float]  # 95 %

    @property
    def verdict(self) -> str:
        """A sentence's end: still falling, rising, flat, or not known for the noise."""
        low, high = (units.number(100 * abs(bound), 1) for bound in self.interval)
        rate = units.number(100 * abs(self.change), 1)
        if self.interval[1] < 0:
            return f"still falling: {rate}% ({high} to {low}) a hundred steps"
        if self.interval[0] > 0:
            return f"rising: {rate}% ({low} to {high}) a hundred steps"
        between = " to ".join(f"{units.signed(100 * bound, 1)}%" for bound in self.interval)
        if max(map(abs, self.interval)) < FLAT:
            return f"flat: {between} a hundred steps"
        return f"neither seen to fall nor to rise for its noise: {between} a hundred steps"

    def in_percent_of(self, level: float) -> "Trend":
        """Return the end of a line at `level` that changes by as much as this one."""
        scale = self.end / level
        low, high = self.interval
        return Trend(self.steps, level, scale * self.change, (scale * low, scale * high))


def trend(points: Sequence[Point]) -> Trend | None:
    """Fit the end of a line; None of fewer than LEAST_POINTS finite values there."""
    finite = [(x, y) for x, y in points if math.isfinite(y)]
    if not finite:
        return None
    last = finite[-1][0]
    ending = [(x, y) for x, y in finite if x > (1 - LAST_SHARE) * last]
    if len(ending) < LEAST_POINTS:
        return None
    slope, middle, half = _fitted_line(ending)
    centre = sum(x for x, _ in ending) / len(ending)
    end = middle + slope * (last - centre)
    if end <= 0:
        return None
    change, spread = 100 * slope / end, 100 * half / end
    steps = int(last - ending[0][0])
    return Trend(steps, end, change, (change - spread, change + spread))


def _fitted_line(points: Sequence[Point]) -> tuple[float, float, float]:
    """Return slope, mean, and half the width of the slope's 95 % interval."""
    from scipy.stats import t

    count = len(points)
    centre, middle = (sum(values) / count for values in zip(*points, strict=True))
    spread = sum((x - centre) ** 2 for x, _ in points)
    slope = sum((x - centre) * (y - middle) for x, y in points) / spread
    rest = [y - middle - slope * (x - centre) for x, y in points]
    squares = sum(r * r for r in rest)
    together = sum(a * b for a, b in pairwise(rest))
    correlation = min(0.9, max(0.0, together / squares)) if squares else 0.0
    free = max(1.0, count * (1 - correlation) / (1 + correlation) - 2)
    return slope, middle, float(t.ppf(0.975, free)) * math.sqrt(squares / free / spread)


@dataclass(frozen=True)
class Ending:
    """The state of one training at its last logged step; None is not known."""

    name: str
    step: int
    trend: Trend | None
    rate: float | None  # learning rate
    rate_share: float | None  # of its highest
    gradient_norm: float | None  # median over the same steps as the trend


def endings(run: ReportData) -> list[Ending]:
    """Return how each training ended, the student's first, as far as it logged."""
    found = []
    for name, (stage, keys) in _TRAININGS.items():
        points = next((line for key in keys if (line := run.series(stage, key))), [])
        if not points:
            continue
        rates = [value for _, value in run.series(stage, "lr")]
        norms = run.series(stage, "train/gradient_norm")
        late = [value for step, value in norms if step > (1 - LAST_SHARE) * points[-1][0]]
        highest = max(rates, default=0.0)
        found.append(
            Ending(
                name=name,
                step=int(points[-1][0]),
                trend=_student_trend(run, points) if name == "student" else trend(points),
                rate=rates[-1] if rates else None,
                rate_share=rates[-1] / highest if highest else None,
                gradient_norm=median(late) if late else None,
            )
        )
    return found


def _student_trend(run: ReportData, points: Sequence[Point]) -> Trend | None:
    """Return the end of the student's loss, with the slope of its KL where that was logged."""
    of_loss, of_kl = trend(points), trend(run.series("distill", "train/kl"))
    return of_loss if of_loss is None or of_kl is None else of_kl.in_percent_of(of_loss.end)


def share_read(run: ReportData) -> float | None:
    """Return the share of the cache's sequences that the student has read; None if not known."""
    if run.setting("distill.targets") == "online" or isinstance(run.setting("cache.reuse"), list):
        return None
    if seen := run.series("distill", "curriculum/unique_seen_share"):
        return seen[-1][1]
    passes = passes_read(run)
    return None if passes is None else min(1.0, passes)


def passes_read(run: ReportData) -> float | None:
    """Return the sequences that the student took over those of the cache."""
    cache, batch = run.results["cache"], run.setting("distill.training.global_batch_size")
    lines = run.metrics.get("distill")
    if not lines or cache is None or not cache["rows"] or not isinstance(batch, int):
        return None
    return float(lines[-1]["step"]) * batch / cache["rows"]


def training_sentences(run: ReportData) -> list[str]:
    """Return whether the student's training was done, and how much of the cache it read."""
    found = []
    student = next((each for each in endings(run) if each.name == "student"), None)
    if student is not None and student.trend is not None:
        ended = f"The student's loss on its batches is {student.trend.verdict}"
        rate = (
            f", at a learning rate of {units.percent(student.rate_share, 0)} of its highest"
            if student.rate_share is not None
            else ""
        )
        found.append(f"{ended}, over the last {student.trend.steps:,} steps{rate}.")
    elif student is not None:
        found.append(
            "Too few steps were logged at the end to tell whether the student's loss still fell."
        )
    share, passes = share_read(run), passes_read(run)
    if share is not None:
        said = f"The student read {units.percent(share)} of the cache's sequences"
        if passes is not None:
            said += f"; its steps took {units.number(passes, 2)} times their number, with repeats"
        found.append(f"{said}.")
    return found


def training_table(run: ReportData) -> Table | None:
    """Return a row a training: its loss, slope, learning rate and gradient norm at the end."""
    found = endings(run)
    if not found:
        return None
    header = ["Training", "Steps", "Loss at the end", "Change in 100 steps", "Learning rate"]
    header.append("Gradient norm")
    rows = [
        [
            each.name,
            f"{each.step:,}",
            units.number(each.trend.end if each.trend else None, 4),
            _change(each.trend),
            units.NONE if each.rate is None else f"{each.rate:.2g}",
            units.number(each.gradient_norm, 3),
        ]
        for each in found
    ]
    caption = (
        "The end of each training: a line through the last third of its logged losses, in brackets "
        "the slope's 95 % interval. The slope of the student's loss is that of its KL, which is "
        "without what differs from batch to batch"
    )
    return Table(caption, header, rows, name="end-of-training")


def _change(found: Trend | None) -> str:
    if found is None:
        return units.NONE
    low, high = (units.signed(100 * bound, 1) for bound in found.interval)
    return f"{units.signed(100 * found.change, 1)}% ({low} to {high})"


def training_figures(run: ReportData) -> dict[str, Any]:
    """Return the same as numbers."""
    ends = {each.name: asdict(each) for each in endings(run)}
    return {"trainings": ends, "share_read": share_read(run), "passes": passes_read(run)}
