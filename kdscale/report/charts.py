"""The report's charts as inline SVG: lines over steps, reliability, the gap, bars.

Our own few functions instead of a plotting library: the page has to be one file that opens anywhere
without network or script, follows the reader's colour scheme and is read out by a screen reader.
Every chart returns empty markup when it has nothing to show.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Literal

from kdscale.evaluate.results import CalibrationBin, DomainMetrics
from kdscale.report import formatting as units
from kdscale.report.facts import Table
from kdscale.report.load import Point
from kdscale.report.markup import Markup, join, tag
from kdscale.report.svg import (
    CHARACTER,
    Box,
    Format,
    Scale,
    axes,
    drawing,
    end_labels,
    legend,
    line,
    marker,
    shorten,
    spread,
    text,
)

EMPTY = Markup("")
STEP = "optimiser step"
PLOT_LEFT = 58.0
LONGEST_LABEL = 16  # characters beside a line's end; longer ones go to a legend above
MAX_POINTS = 300  # of a line: more than the pixels can show only makes the file heavy


@dataclass(frozen=True)
class Series:
    """One line of a chart: `strong` with markers, `plain` without, `faint` behind the others, or a
    `level`: the value of its one point, all across."""

    name: str
    role: str  # CSS class: teacher, student, baseline, second or third
    points: Sequence[Point]
    kind: Literal["strong", "plain", "faint", "level"] = "strong"
    label: str = ""  # what stands at the line's end, where `name` says more than a reader needs

    def finite(self) -> list[Point]:
        """The points that can be drawn."""
        return [(x, y) for x, y in self.points if math.isfinite(x) and math.isfinite(y)]


def smooth(points: Sequence[Point], share: float = 0.05) -> list[Point]:
    """Centred moving mean over `share` of the points; values that are not finite stay as they are
    and do not spread."""
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
    """At most `limit` of the points, evenly chosen, the first and the last among them."""
    if len(points) <= limit:
        return list(points)
    return [points[round(i * (len(points) - 1) / (limit - 1))] for i in range(limit)]


def line_chart(
    identifier: str,
    title: str,
    series: Sequence[Series],
    y_label: str,
    *,
    x_label: str = STEP,
    width: float = 720,
    y_range: tuple[float, float] | None = None,
    y_format: Format | None = None,
    skip_share: float = 0.0,
) -> Markup:
    """Lines over a common x axis.

    Without `y_range` the y axis covers what happens after the first `skip_share` of the x axis: the
    fall from a random start would otherwise flatten everything that is worth comparing.
    """
    shown = [s for s in series if s.finite()]
    flat = [point for s in shown if s.kind != "level" for point in s.finite()]
    if not flat:
        return EMPTY
    first, last = min(x for x, _ in flat), max(x for x, _ in flat)
    late = [y for x, y in flat if x >= first + skip_share * (last - first)]
    late += [s.finite()[0][1] for s in shown if s.kind == "level"]
    margin = _label_margin(shown)
    entries = [(s.role, s.kind, s.name) for s in shown] if len(shown) > 1 and not margin else []
    keys, lowest = legend(PLOT_LEFT, 14, width - PLOT_LEFT, entries)
    box = Box(PLOT_LEFT, lowest + (36 if entries else 12), width - (margin or 16), lowest + 266)
    x = Scale(*((first, last) if last > first else spread([first])), box.left, box.right)
    y = Scale(*(y_range or spread(late)), box.bottom, box.top)
    lines = [_line(s, x, y) for s in sorted(shown, key=lambda s: s.kind == "strong")]
    if margin:
        keys = end_labels(box, [_end(s, x, y) for s in _named(shown)])
    return drawing(
        identifier,
        title,
        _describe(series, x_label),
        (width, box.bottom + 46),
        _clip(identifier, box),
        axes(box, x, y, (x_label, y_label), (None, y_format)),
        tag("g", *lines, clip_path=f"url(#{identifier}-clip)"),
        keys,
    )


def _named(series: Sequence[Series]) -> list[Series]:
    """Those that are named in a drawing: a faint line is of the colour of its strong one."""
    return [s for s in series if s.kind != "faint"]


def _end(series: Series, x: Scale, y: Scale) -> tuple[str, float, float]:
    """What a line is called, and where it ends in pixels."""
    last, value = series.finite()[-1]
    return series.label or series.name, x(x.high if series.kind == "level" else last), y(value)


def _label_margin(series: Sequence[Series]) -> float:
    """The room that names at the lines' ends take; 0 where there is one line, or a long name."""
    longest = max((len(s.label or s.name) for s in _named(series)), default=0)
    if len(series) < 2 or not 0 < longest <= LONGEST_LABEL:
        return 0.0
    return 24 + CHARACTER * longest


def _line(series: Series, x: Scale, y: Scale) -> Markup:
    points = thin(series.finite())
    if series.kind == "level":
        at = y(points[0][1])
        return line(x(x.low), at, x(x.high), at, f"series level {series.role}")
    path = " ".join(f"{x(px)},{y(py)}" for px, py in points)
    drawn = tag("polyline", points=path, class_=f"series {series.kind} {series.role}")
    if series.kind != "strong" and len(points) > 1:
        return drawn
    tips = [f"{series.name}, {px:g}: {py:.4g}" for px, py in points]
    marks = [
        marker(series.role, x(px), y(py), 4, tip)
        for (px, py), tip in zip(points, tips, strict=True)
    ]
    # Beyond this, markers would hide the line they stand on.
    return join(drawn, *(marks if len(marks) <= 60 else marks[-1:]))


def data_table(caption: str, series: Sequence[Series], x_label: str, rows: int = 10) -> Table:
    """At most `rows` of the values that a line chart draws, for who reads rather than looks; a dash
    where a line has none at that step."""
    drawn = [s for s in series if s.finite()]
    lines = [s for s in drawn if s.kind != "level"]
    sparsest = min(lines, key=lambda s: len(s.finite()), default=None)
    values = {s.name: dict(s.finite()) for s in drawn}
    levels = {s.name: s.finite()[0][1] for s in drawn if s.kind == "level"}
    cells = [
        [
            f"{x:g}",
            *(units.significant(levels.get(name, found.get(x))) for name, found in values.items()),
        ]
        for x, _ in (thin(sparsest.finite(), rows) if sparsest else ())
    ]
    return Table(caption, [x_label.capitalize(), *values], cells)


def _clip(identifier: str, box: Box) -> Markup:
    rectangle = tag(
        "rect",
        x=box.left - 5,
        y=box.top - 5,
        width=box.right - box.left + 10,
        height=box.bottom - box.top + 10,
    )
    return tag("defs", tag("clipPath", rectangle, id=f"{identifier}-clip"))


def _describe(series: Sequence[Series], x_label: str) -> str:
    sentences = []
    for s in series:
        points = s.finite()
        if s.kind == "level" and points:
            sentences.append(f"{s.name}: {points[-1][1]:.4g}.")
        elif points:
            (x0, y0), (x1, y1) = points[0], points[-1]
            sentences.append(f"{s.name}: from {y0:.4g} at {x_label} {x0:g} to {y1:.4g} at {x1:g}.")
        if lost := len(s.points) - len(points):
            sentences.append(f"{s.name}: {lost} values that are not finite are left out.")
    return " ".join(sentences)


def reliability_chart(identifier: str, domain: str, scores: Mapping[str, DomainMetrics]) -> Markup:
    """Accuracy over confidence, one line a model; markers grow with the positions in the bin."""
    entries, sentences = [], []
    bins = {}
    for role, metrics in scores.items():
        bins[role] = [b for b in metrics["calibration"] if math.isfinite(b["confidence"])]
        ece = units.number(metrics["ece"], 4)
        entries.append((role, "strong", f"{role}, ECE {ece}"))
        sentences.append(f"{role}: expected calibration error {ece} over {len(bins[role])} bins.")
    if not any(bins.values()):
        return EMPTY
    keys, lowest = legend(12, 14, 360, entries)
    box = Box(52, lowest + 36, 352, lowest + 336)
    x, y = Scale(0, 1, box.left, box.right), Scale(0, 1, box.bottom, box.top)
    return drawing(
        identifier,
        f"Calibration on {domain}",
        " ".join(sentences),
        (376, box.bottom + 46),
        axes(
            box,
            x,
            y,
            ("confidence of the top-1 id", "accuracy of the top-1 id"),
            (units.whole_percent, units.whole_percent),
        ),
        line(x(0), y(0), x(1), y(1), "diagonal"),
        *(_reliability(role, found, x, y) for role, found in bins.items() if found),
        keys,
    )


def _reliability(role: str, bins: Sequence[CalibrationBin], x: Scale, y: Scale) -> Markup:
    largest = max(b["count"] for b in bins)
    path = " ".join(f"{x(b['confidence'])},{y(b['accuracy'])}" for b in bins)
    marks = []
    for b in bins:
        tip = (
            f"{role}: confidence {units.percent(b['confidence'])}, "
            f"accuracy {units.percent(b['accuracy'])}, {b['count']:,} positions"
        )
        radius = 2 + 4 * math.sqrt(b["count"] / largest)
        marks.append(marker(role, x(b["confidence"]), y(b["accuracy"]), radius, tip))
    return join(tag("polyline", points=path, class_=f"series thin {role}"), *marks)


@dataclass(frozen=True)
class Gap:
    """A domain's losses (nats a token) and the share of the gap that the student recovered."""

    domain: str
    teacher: float
    student: float
    baseline: float
    recovered: float
    interval: tuple[float, float] | None = None  # 95 %, of `recovered`


def gap_chart(identifier: str, gaps: Sequence[Gap]) -> Markup:
    """Where the student stands on the way from the baseline (0 %) to the teacher (100 %)."""
    if not gaps:
        return EMPTY
    reached = [share for g in gaps for share in (g.recovered, *(g.interval or ()))]
    low, high = min(0.0, *reached), max(1.0, *reached)
    x = Scale(low, high, 120, 600)
    parts, sentences = [], []
    for index, gap in enumerate(gaps):
        top = 78 * index
        y, share = top + 56, units.percent(gap.recovered)
        parts += [
            text(0, top + 16, shorten(gap.domain, 90), "strong"),
            line(x(0), y, x(1), y, "track"),
            line(x(0), y, x(gap.recovered), y, "filled"),
            whisker(gap.interval, x, y + 15, cap=4),  # below the marker, which would hide it
            marker("baseline", x(0), y, 6),
            marker("teacher", x(1), y, 7),
            marker("student", x(gap.recovered), y, 7),
            text(x(low) - 14, y + 4, f"baseline {gap.baseline:.4f}", "tick end"),
            text(x(high) + 14, y + 4, f"teacher {gap.teacher:.4f}", "tick"),
            text(x(gap.recovered), y - 15, f"student {gap.student:.4f} · {share}", "strong middle"),
        ]
        sentences.append(
            f"{gap.domain}: baseline {gap.baseline:.4f}, student {gap.student:.4f}, teacher "
            f"{gap.teacher:.4f}: {units.between(gap.recovered, gap.interval)} of the gap recovered."
        )
    height = 78 * len(gaps)
    title = "Loss of the student between baseline and teacher, nats a token"
    return drawing(identifier, title, " ".join(sentences), (720, height), *parts)


def whisker(interval: tuple[float, float] | None, x: Scale, y: float, cap: float = 6) -> Markup:
    """A 95 % interval as a line with caps."""
    if interval is None:
        return EMPTY
    low, high = (x(bound) for bound in interval)
    ends = (line(at, y - cap, at, y + cap, "whisker") for at in (low, high))
    return join(line(low, y, high, y, "whisker"), *ends)


def bar_chart(identifier: str, title: str, bars: Mapping[str, float], form: Format) -> Markup:
    """Horizontal bars from 0, each with its value."""
    finite = {name: value for name, value in bars.items() if math.isfinite(value)}
    if not finite:
        return EMPTY
    x = Scale(0, max(*finite.values(), 1e-9), 120, 600)
    parts = []
    for index, (name, value) in enumerate(finite.items()):
        y = 8 + 30 * index
        width = max(1.0, x(value) - x(0))
        parts += [
            text(108, y + 15, shorten(name, 16), "tick end"),
            tag("rect", x=x(0), y=y, width=round(width, 2), height=20, rx=3, class_="bar"),
            text(x(0) + width + 8, y + 15, form(value), "tick"),
        ]
    description = ", ".join(f"{name}: {form(value)}" for name, value in finite.items()) + "."
    return drawing(identifier, title, description, (720, 16 + 30 * len(finite)), *parts)
