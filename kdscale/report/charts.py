"""The charts of the pages: Matplotlib's SVG, with colours that follow the reader's scheme.

Matplotlib draws in the colours of PALETTE, which the SVG then names as CSS variables: one drawing
serves the light page, the dark page and paper. Models differ by colour, dash and marker, because
colour alone fails one reader in twelve. A chart without anything to show is the empty string.
Importing Matplotlib takes a second, so only `pages` imports this module.
"""

import io
import math
import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

import matplotlib as mpl
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import (
    EngFormatter,
    LogLocator,
    NullFormatter,
    PercentFormatter,
    ScalarFormatter,
    StrMethodFormatter,
)

from kdscale.evaluate.schema import DomainMetrics
from kdscale.report import formatting as units
from kdscale.report.compare import Dots
from kdscale.report.curves import STEP, Series, thin
from kdscale.report.load import Point
from kdscale.report.tables import Table

PALETTE = {
    "teacher": "#009e73",
    "student": "#0072b2",
    "baseline": "#d55e00",
    "second": "#cc79a7",
    "third": "#8c6d1f",
    "ink": "#1c2024",
    "soft": "#5b636b",
    "rule": "#dfe2e5",
    "card": "#fffffe",
}
"""Name of the CSS variable in templates/style.css: the colour that Matplotlib draws it in."""

MARKERS = {"teacher": "^", "student": "o", "baseline": "s", "second": "D", "third": "v"}
_DASHES: dict[str, Any] = {
    "teacher": (0, (1, 2)),
    "student": "-",
    "baseline": (0, (3.5, 2)),
    "second": (0, (4.5, 1.5, 1, 1.5)),
    "third": (0, (0.5, 2.5)),
}
_STYLE: Any = {
    "svg.fonttype": "none",
    "font.size": 12,
    "text.parse_math": False,
    "text.color": PALETTE["ink"],
    "axes.labelcolor": PALETTE["soft"],
    "xtick.color": PALETTE["soft"],
    "ytick.color": PALETTE["soft"],
    "ytick.major.size": 0,
    "ytick.minor.size": 0,
    "xtick.minor.size": 0,
    "axes.edgecolor": PALETTE["soft"],
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "axes.xmargin": 0.015,
    "grid.color": PALETTE["rule"],
    "legend.frameon": False,
    "lines.dash_capstyle": "round",
}
_CHARACTER = 7.0  # mean width in pixels
_TIPS = 16  # places of a line without markers that show their values on hover


@dataclass(frozen=True)
class Gap:
    """A domain's losses, in one unit, and the share of the gap that the student recovered."""

    domain: str
    teacher: float
    student: float
    baseline: float
    recovered: float
    interval: tuple[float, float] | None = None  # 95 %, of `recovered`


@dataclass(frozen=True)
class Note:
    """A larger marker with a name beside it: right above it, or left below."""

    text: str
    role: str
    x: float
    y: float
    above: bool = True


def line_chart(
    identifier: str,
    title: str,
    series: Sequence[Series],
    y_label: str,
    *,
    x_label: str = STEP,
    width: float = 720,
    shares: bool = False,
    y_range: tuple[float, float] | None = None,
    skip_share: float = 0.0,
    log: bool = False,
    notes: Sequence[Note] = (),
    description: str = "",
) -> Markup:
    """Draw lines over a common x axis; lines of one label share an entry of the legend.

    Args:
        identifier: the drawing's id, unique on the page.
        title: the name for screen readers.
        series: the lines.
        y_label: the unit of the y axis.
        x_label: the unit of the x axis.
        width: in pixels.
        shares: y values are shares of 1, shown in percent.
        y_range: the y axis; by default what happens after the first `skip_share` of the x axis: the
            fall from a random start would flatten everything that is worth comparing.
        skip_share: see `y_range`.
        log: both axes are logarithmic.
        notes: markers with a name.
        description: the text alternative; by default the first and last values.
    """
    shown = [s for s in series if s.finite()]
    flat = [point for s in shown if s.kind != "level" for point in s.finite()]
    if not flat:
        return Markup("")
    first, last = min(x for x, _ in flat), max(x for x, _ in flat)
    late = [(x, y) for x, y in flat if x >= first + skip_share * (last - first)]
    late += [(last, s.finite()[0][1]) for s in shown if s.kind == "level"]

    def paint(axes: Axes) -> None:
        if log:
            axes.loglog()
            axes.margins(0.05)
        for each in sorted(shown, key=lambda s: s.kind == "strong"):
            _line(axes, each, (first, last))
        for note in notes:
            _annotate(axes, note)
        axes.ignore_existing_data_limits = True
        axes.update_datalim([(first, late[0][1]), *late])
        axes.autoscale_view()
        axes.set(xlabel=x_label, ylabel=y_label)
        if y_range:
            axes.set_ylim(*y_range)
        for axis in (axes.xaxis, axes.yaxis):
            _label_ticks(axis, log, shares and axis is axes.yaxis)

    text = description or _describe(series, x_label)
    keys = {s.label or s.name: _key(s) for s in shown if s.kind != "faint"}
    margins, legend = (66 if y_label else 56, 52), keys if len(shown) > 1 else {}
    return _drawing(identifier, title, text, (width, 300), margins, paint, legend)


def _annotate(axes: Axes, note: Note) -> None:
    """Draw a larger marker and its name."""
    _mark(axes, note.role, note.x, note.y, 6.5)
    shift, anchor = ((10, 8), "left") if note.above else ((-10, -14), "right")
    _write(axes, note.text, note.x, note.y, shift, ha=anchor, weight="bold")


def _label_ticks(axis: Axis, log: bool, shares: bool) -> None:
    """Write percents, or numbers without offset or exponent and with k, M, G from 10,000 on."""
    if log:
        axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.set_major_formatter(StrMethodFormatter("{x:g}"))
        axis.set_minor_formatter(NullFormatter())
    elif shares:
        axis.set_major_formatter(PercentFormatter(1.0))
    elif max(map(abs, axis.get_view_interval())) >= 1e4:
        axis.set_major_formatter(EngFormatter(sep=" "))
    else:
        axis.set_major_formatter(ScalarFormatter(useOffset=False))


def _look(role: str) -> dict[str, Any]:
    return {"color": PALETTE[role], "ls": _DASHES[role]}


def _line(axes: Axes, series: Series, ends: tuple[float, float]) -> None:
    """Draw one line, with a marker for each of few points and for the last of many."""
    points = thin(series.finite())
    x, y = [p[0] for p in points], [p[1] for p in points]
    if series.kind == "level":
        x, y = list(ends), [y[0], y[0]]
    strength = {"lw": 1.5, "alpha": 0.45} if series.kind == "faint" else {"lw": 2}
    axes.plot(x, y, gid=f"@series {series.kind} {series.role}", **_look(series.role), **strength)
    tips = series.tips or [f"{series.name}, {px:g}: {py:.4g}" for px, py in points]
    marks = list(zip(points, tips, strict=True))
    if series.kind == "level" or (series.kind != "strong" and len(points) > 1):
        marked = []
    else:
        # Beyond 60, markers would hide the line they stand on.
        marked = marks if len(marks) <= 60 else marks[-1:]
    if len(marked) < len(marks) and series.kind != "level":
        _tips(axes, marks)
    for (px, py), tip in marked:
        _mark(axes, series.role, px, py, 4, tip)


def _tips(axes: Axes, marks: Sequence[tuple[Point, str]]) -> None:
    """Lay places along a line that show nothing but, on hover, its values."""
    for place in sorted({round(i * (len(marks) - 1) / (_TIPS - 1)) for i in range(_TIPS)}):
        (x, y), tip = marks[place]
        # Matplotlib leaves out what is wholly transparent.
        axes.plot([x], [y], "o", c="k", ms=9, alpha=0.001, mew=0, zorder=2, gid=f"@tip|{tip}")


def _mark(
    axes: Axes, role: str, x: float, y: float, radius: float, tip: str = "", clip: bool = True
) -> None:
    """Draw a model's marker, with `tip` shown on hover."""
    face, edge = ("card", "soft") if role == "seed" else (role, "card")
    axes.plot(
        *([x], [y]),
        marker=MARKERS.get(role, "o"),
        ls="",
        ms=2 * radius,
        mfc=PALETTE[face],
        mec=PALETTE[edge],
        mew=1,
        zorder=3,
        clip_on=clip,
        gid=f"@mark {role}|{tip}",
    )


def _key(series: Series) -> Line2D:
    """Return the legend's sample of a line."""
    marker = MARKERS[series.role] if series.kind == "strong" else ""
    return Line2D([], [], lw=2, ms=7, marker=marker, **_look(series.role))


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


def data_table(caption: str, series: Sequence[Series], x_label: str, rows: int = 10) -> Table:
    """Return at most `rows` of the values of a line chart; a dash where a line has none there."""
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


def reliability_chart(identifier: str, domain: str, scores: Mapping[str, DomainMetrics]) -> Markup:
    """Draw accuracy over confidence, one line a model; markers grow with the bins' positions."""
    entries, sentences, bins = {}, [], {}
    for role, metrics in scores.items():
        bins[role] = [b for b in metrics["calibration"] if math.isfinite(b["confidence"])]
        ece = units.number(metrics["ece"], 4)
        entries[f"{role}, ECE {ece}"] = _key(Series(role, role, []))
        sentences.append(f"{role}: expected calibration error {ece} over {len(bins[role])} bins.")
    if not any(bins.values()):
        return Markup("")

    def paint(axes: Axes) -> None:
        axes.plot([0, 1], [0, 1], color=PALETTE["soft"], ls=(0, (2, 4)), lw=1)
        for role, found in ((role, found) for role, found in bins.items() if found):
            at = [(b["confidence"], b["accuracy"]) for b in found]
            axes.plot(*zip(*at, strict=True), lw=1.25, gid=f"@series thin {role}", **_look(role))
            largest = max(b["count"] for b in found)
            for b, (x, y) in zip(found, at, strict=True):
                tip = (
                    f"{role}: confidence {units.percent(x)}, accuracy {units.percent(y)}, "
                    f"{b['count']:,} positions"
                )
                _mark(axes, role, x, y, 2 + 4 * math.sqrt(b["count"] / largest), tip)
        axes.set(xlim=(0, 1), ylim=(0, 1), xlabel="confidence of the top-1 id")
        axes.set_ylabel("accuracy of the top-1 id")
        for axis in (axes.xaxis, axes.yaxis):
            _label_ticks(axis, log=False, shares=True)

    title, text = f"Calibration on {domain}", " ".join(sentences)
    return _drawing(identifier, title, text, (376, 360), (70, 52), paint, entries)


def gap_chart(identifier: str, gaps: Sequence[Gap], unit: str = "nats per token") -> Markup:
    """Draw the student's place between the baseline (0 %) and the teacher (100 %)."""
    if not gaps:
        return Markup("")
    reached = [share for g in gaps for share in (g.recovered, *(g.interval or ()))]
    low, high = min(0.0, *reached), max(1.0, *reached)

    def paint(axes: Axes) -> None:
        axes.set(xlim=(low, high), ylim=(78 * len(gaps), 0))
        axes.axis("off")
        for index, gap in enumerate(gaps):
            top, at = 78 * index, gap.recovered
            y = top + 54
            for to, color in ((1.0, "rule"), (at, "student")):
                look: dict[str, Any] = {"lw": 6, "solid_capstyle": "round", "clip_on": False}
                axes.plot([0, to], [y, y], color=PALETTE[color], **look)
            if gap.interval:  # below the marker, which would hide it
                _whisker(axes, gap.interval, y + 15)
            for role, x, size in (("baseline", 0.0, 6), ("teacher", 1.0, 7), ("student", at, 7)):
                _mark(axes, role, x, y, size, clip=False)
            soft, student = PALETTE["soft"], f"student {gap.student:.4f} · {units.percent(at)}"
            _write(axes, gap.domain, low, top + 12, (-120, 0), weight="bold")
            _write(axes, f"baseline {gap.baseline:.4f}", low, y, (-14, 0), ha="right", color=soft)
            _write(axes, f"teacher {gap.teacher:.4f}", high, y, (14, 0), color=soft)
            _write(axes, student, at, y - 20, (0, 0), ha="center", weight="bold")

    sentences = [
        f"{gap.domain}: baseline {gap.baseline:.4f}, student {gap.student:.4f}, teacher "
        f"{gap.teacher:.4f}: {units.between(gap.recovered, gap.interval)} of the gap recovered."
        for gap in gaps
    ]
    title = f"Loss of the student between baseline and teacher, {unit}"
    size = (720, 78 * len(gaps))
    return _drawing(identifier, title, " ".join(sentences), size, (122, 0), paint, right=122)


def dot_chart(
    identifier: str, title: str, rows: Sequence[Dots], x_label: str, shares: bool = False
) -> Markup:
    """Draw a row an experiment: a small dot a seed, the mean with its interval and in figures."""
    shown = [row for row in rows if math.isfinite(row.middle)]
    if not shown:
        return Markup("")

    def paint(axes: Axes) -> None:
        axes.set_ylim(len(shown) - 0.5, -0.5)
        for y, row in enumerate(shown):
            if row.interval:
                _whisker(axes, row.interval, y)
            for value in row.values if len(row.values) > 1 else ():
                _mark(axes, "seed", value, y, 3)
            _mark(axes, "student", row.middle, y, 5.5, f"{row.name}: {row.text}")
            place = ("axes fraction", "data")
            _write(axes, row.text, 1, y, (14, 0), xycoords=place, weight="bold")
        axes.margins(x=0.05)
        axes.set_yticks(range(len(shown)), [_shorten(row.name, 24) for row in shown])
        axes.grid(axis="y", visible=False)
        axes.grid(axis="x", visible=True)
        _label_ticks(axes.xaxis, log=False, shares=shares)
        axes.set_xlabel(x_label)

    text = " ".join(f"{row.name}: {row.text}." for row in shown)
    size = (720, 62 + 36 * len(shown))
    return _drawing(identifier, title, text, size, (190, 52), paint, right=130)


def bar_chart(
    identifier: str, title: str, bars: Mapping[str, float], form: Callable[[float], str]
) -> Markup:
    """Draw horizontal bars from 0, each with its value."""
    finite = {name: value for name, value in bars.items() if math.isfinite(value)}
    if not finite:
        return Markup("")

    def paint(axes: Axes) -> None:
        axes.set(xlim=(0, max(*finite.values(), 1e-9)), ylim=(len(finite) - 0.5, -0.5))
        for y, value in enumerate(finite.values()):
            axes.barh(y, value, 0.67, color=PALETTE["student"], gid="@bar")
            _write(axes, form(value), value, y, (8, 0), color=PALETTE["soft"])
        axes.set_yticks(range(len(finite)), [_shorten(name, 14) for name in finite])
        axes.tick_params(bottom=False, labelbottom=False)
        axes.grid(visible=False)
        axes.spines[:].set_visible(False)

    text = ", ".join(f"{name}: {form(value)}" for name, value in finite.items()) + "."
    size = (720, 16 + 30 * len(finite))
    return _drawing(identifier, title, text, size, (120, 6), paint, right=120)


def _write(
    axes: Axes, text: str, x: float, y: float, shift: tuple[float, float], **look: Any
) -> None:
    """Write `text` at a point, moved by `shift` pixels right and up."""
    axes.annotate(
        *(text, (x, y), shift),
        textcoords="offset points",
        annotation_clip=False,
        **{"va": "center", **look},
    )


def _whisker(axes: Axes, interval: tuple[float, float], y: float) -> None:
    """Draw a 95 % interval as a line with caps."""
    look: dict[str, Any] = {"color": PALETTE["ink"], "lw": 1.5, "marker": "|", "ms": 8, "mew": 1.5}
    axes.plot(interval, [y, y], gid="@whisker", clip_on=False, **look)


def _shorten(label: str, characters: int) -> str:
    """Leave out the middle of a longer label: names differ at their ends."""
    if len(label) <= characters:
        return label
    head = (characters - 1) // 2
    return f"{label[:head]}…{label[len(label) - (characters - 1 - head) :]}"


def _drawing(
    identifier: str,
    title: str,
    description: str,
    size: tuple[float, float],
    margins: tuple[float, float],
    paint: Callable[[Axes], None],
    entries: Mapping[str, Line2D] | None = None,
    right: float = 24,
) -> Markup:
    """Paint axes with `margins` (left, bottom) under a legend, and return the accessible <svg>."""
    columns, rows = 1, 0
    if entries:
        widest = max(map(len, entries)) * _CHARACTER + 56
        columns = max(1, min(len(entries), int(size[0] // widest)))
        rows = math.ceil(len(entries) / columns)
    (width, height), (left, bottom), top = size, margins, 12 + 20 * rows if rows else 10
    height += 20 * rows
    if not bottom:  # a drawing without axes
        top = 0
    out = io.StringIO()
    with mpl.rc_context(), warnings.catch_warnings():
        mpl.rcdefaults()  # a reader's own matplotlibrc may have another style
        mpl.rcParams.update({**_STYLE, "svg.hashsalt": identifier})
        warnings.filterwarnings("ignore", "Glyph")  # the reader's fonts count, not ours
        figure = Figure(figsize=(width / 72, height / 72), dpi=72)
        inner = (width - left - right) / width, (height - top - bottom) / height
        axes = figure.add_axes((left / width, bottom / height, *inner))
        paint(axes)
        if entries:
            figure.legend(
                list(entries.values()),
                list(entries),
                loc="upper left",
                bbox_to_anchor=(8 / width, 1),
                ncols=columns,
                borderaxespad=0.0,
                handlelength=2.6,
                columnspacing=1.5,
            )
        figure.savefig(out, format="svg", transparent=True)
    return _inline(out.getvalue(), identifier, title, description, (width, height))


def _inline(
    svg: str, identifier: str, title: str, description: str, size: tuple[float, float]
) -> Markup:
    """Return Matplotlib's file as an element: with text alternatives, classes and CSS variables."""
    body = svg[svg.index('<g id="figure_1"') : svg.rindex("</svg>")]
    body = re.sub(r'<g id="@([^"|]*)(?:\|([^"]*))?">', _classed, body)
    # What is left are groups' names, the same in each chart; markers and clips are hashed.
    body = re.sub(r' id="(?![mp][0-9a-f]{10}")[^"]*"', "", body)
    body = re.sub(r"font-family: [^;\"]*;? ?", "", body).replace("xlink:href", "href")
    body = re.sub(r' (?:d|x|y|transform)="[^"]*"', _rounded, body)
    for name, color in PALETTE.items():
        body = body.replace(color, f"var(--{name})")
    named = "".join(
        f'<{tag} id="{identifier}-{tag}">{escape(text)}</{tag}>'
        for tag, text in (("title", title), ("desc", description))
    )
    labels = f'aria-labelledby="{identifier}-title" aria-describedby="{identifier}-desc"'
    frame = f'viewBox="0 0 {size[0]:g} {size[1]:g}" width="{size[0]:g}" height="{size[1]:g}"'
    return Markup(f'<svg id="{identifier}" role="img" {labels} {frame}>{named}{body}</svg>')


def _classed(group: re.Match[str]) -> str:
    tip = f"<title>{group[2]}</title>" if group[2] else ""
    return f'<g class="{group[1]}">{tip}'


def _rounded(attribute: re.Match[str]) -> str:
    return re.sub(r"(\.\d\d)\d+", r"\1", attribute[0])
