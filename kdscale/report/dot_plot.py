"""One figure of several experiments on a common axis: a dot a seed, the mean with its interval."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from kdscale.report.charts import EMPTY, whisker
from kdscale.report.markup import Markup
from kdscale.report.svg import (
    Box,
    Format,
    Scale,
    drawing,
    line,
    marker,
    shorten,
    spread,
    text,
    tick_format,
    ticks,
)

WIDTH, LEFT, RIGHT, ROW = 720.0, 190.0, 590.0, 36.0


@dataclass(frozen=True)
class Dots:
    """The seeds' values of one experiment, their mean, and its 95 % interval where there is one."""

    name: str
    values: tuple[float, ...]
    middle: float
    interval: tuple[float, float] | None
    text: str  # mean and interval as the page writes them


def dot_chart(
    identifier: str, title: str, rows: Sequence[Dots], x_label: str, x_format: Format | None = None
) -> Markup:
    """A row an experiment, with its mean in figures at the right."""
    shown = [row for row in rows if math.isfinite(row.middle)]
    if not shown:
        return EMPTY
    reached = [value for row in shown for value in (*row.values, *(row.interval or ()))]
    box = Box(LEFT, 10, RIGHT, 10 + ROW * len(shown))
    x = Scale(*spread(reached), box.left, box.right)
    parts = _axis(box, x, x_label, x_format)
    for index, row in enumerate(shown):
        parts += _row(row, box, box.top + ROW * (index + 0.5), x)
    described = " ".join(f"{row.name}: {row.text}." for row in shown)
    return drawing(identifier, title, described, (WIDTH, box.bottom + 46), *parts)


def _axis(box: Box, x: Scale, label: str, form: Format | None) -> list[Markup]:
    at = ticks(x.low, x.high, 5)
    written = form or tick_format(at)
    parts = []
    for value in at:
        parts.append(line(x(value), box.top, x(value), box.bottom, "grid"))
        parts.append(text(x(value), box.bottom + 19, written(value), "tick middle"))
    parts.append(line(box.left, box.bottom, box.right, box.bottom, "axis"))
    parts.append(text((box.left + box.right) / 2, box.bottom + 38, label, "label middle"))
    return parts


def _row(row: Dots, box: Box, y: float, x: Scale) -> list[Markup]:
    seeds = row.values if len(row.values) > 1 else ()
    return [
        text(box.left - 14, y + 4, shorten(row.name, 26), "key end"),
        whisker(row.interval, x, y),
        *(marker("seed", x(value), y, 3) for value in seeds),
        marker("student", x(row.middle), y, 5.5, f"{row.name}: {row.text}"),
        text(box.right + 14, y + 4, row.text, "strong"),
    ]
