"""The parts that charts share: scales, ticks, axes, markers, legend, and the accessible frame.

Colours, dashes and fonts are CSS classes (see style.py), so that one drawing serves the light page,
the dark page and paper. Who is who is said three times, by colour, by dash and by marker shape,
because colour alone fails one reader in twelve.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from kdscale.report.markup import Markup, join, tag

Format = Callable[[float], str]

# Corners of the markers, in radii; a student's is a circle.
CORNERS: dict[str, tuple[tuple[float, float], ...]] = {
    "teacher": ((0, -1.2), (1.1, 0.8), (-1.1, 0.8)),
    "baseline": ((-0.9, -0.9), (0.9, -0.9), (0.9, 0.9), (-0.9, 0.9)),
    "second": ((0, -1.2), (1.2, 0), (0, 1.2), (-1.2, 0)),
}
CHARACTER = 6.7  # mean width of a character of the charts' 12-pixel font


@dataclass(frozen=True)
class Scale:
    """The linear map of [low, high] to [start, end] pixels."""

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        share = (value - self.low) / (self.high - self.low)
        return round(self.start + share * (self.end - self.start), 2)


@dataclass(frozen=True)
class Box:
    """The plotting area in pixels, y downwards."""

    left: float
    top: float
    right: float
    bottom: float


def ticks(low: float, high: float, target: int = 5) -> list[float]:
    """About `target` multiples of 1, 2 or 5 times a power of ten within [low, high]."""
    raw = (high - low) / target
    power = 10.0 ** math.floor(math.log10(raw))
    step = power * next(factor for factor in (1, 2, 5, 10) if factor * power >= raw * 0.999)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [index * step for index in range(first, last + 1)]


def spread(values: Sequence[float], margin: float = 0.05) -> tuple[float, float]:
    """A range that holds all values with some air; never empty, so that one point can be drawn."""
    low, high = min(values), max(values)
    if high - low <= 1e-12 * max(abs(low), abs(high), 1e-300):
        reach = abs(high) * 0.1 or 1.0
        return low - reach, high + reach
    return low - margin * (high - low), high + margin * (high - low)


def tick_format(at: Sequence[float]) -> Format:
    """As many decimals as the ticks need to differ; k, M, B from 10,000 on."""
    step = at[1] - at[0] if len(at) > 1 else 1.0
    top = max((abs(value) for value in at), default=0.0)
    for limit, unit in ((1e9, "B"), (1e6, "M"), (1e4, "k")):
        if top >= limit:
            scale = 1e3 if unit == "k" else limit
            digits = _decimals(step / scale)
            return lambda value: f"{value / scale:,.{digits}f} {unit}" if value else "0"
    digits = _decimals(step)
    if digits > 6:
        return lambda value: f"{value:.3g}"
    return lambda value: f"{value:,.{digits}f}"


def _decimals(step: float) -> int:
    return max(0, -math.floor(math.log10(step) + 1e-9))


def axes(
    box: Box,
    x: Scale,
    y: Scale,
    labels: tuple[str, str],
    formats: tuple[Format | None, Format | None],
) -> Markup:
    """Grid lines, tick labels and axis titles (x, y) of `box`."""
    parts = []
    x_at, y_at = ticks(x.low, x.high, 6), ticks(y.low, y.high)
    x_format, y_format = formats[0] or tick_format(x_at), formats[1] or tick_format(y_at)
    for value in y_at:
        at = y(value)
        parts.append(line(box.left, at, box.right, at, "grid"))
        parts.append(text(box.left - 8, at + 4, y_format(value), "tick end"))
    for value in x_at:
        at = x(value)
        parts.append(line(at, box.bottom, at, box.bottom + 5, "axis"))
        parts.append(text(at, box.bottom + 19, x_format(value), "tick middle"))
    parts.append(line(box.left, box.bottom, box.right, box.bottom, "axis"))
    parts.append(text((box.left + box.right) / 2, box.bottom + 38, labels[0], "label middle"))
    parts.append(text(box.left, box.top - 10, labels[1], "label"))
    return join(*parts)


def legend(
    x: float, y: float, width: float, entries: Sequence[tuple[str, str, str]]
) -> tuple[Markup, float]:
    """Entries (role, kind of line, text) in rows from (x, y) on, and the last row's baseline."""
    parts, at = [], x
    for role, kind, label in entries:
        needed = 34 + CHARACTER * len(label) + 18
        if at > x and at + needed > x + width:
            at, y = x, y + 18
        sample = line(at, y - 4, at + 26, y - 4, f"series {kind} {role}")
        shape = marker(role, at + 13, y - 4) if kind == "strong" else None
        parts += [sample, shape, text(at + 32, y, label, "key")]
        at += needed
    return join(*parts), y


def end_labels(box: Box, entries: Sequence[tuple[str, float, float]], gap: float = 15) -> Markup:
    """Entries (label, x and y where its line ends) right of `box`, moved apart where they would
    meet."""
    parts = []
    ordered = sorted(entries, key=lambda entry: entry[2])
    tops = _apart([y for *_, y in ordered], gap, box.top + 4, box.bottom - 4)
    for (label, x, y), at in zip(ordered, tops, strict=True):
        parts.append(line(x + 6, y, box.right + 6, y, "leader"))
        parts.append(line(box.right + 6, y, box.right + 13, at, "leader"))
        parts.append(text(box.right + 16, at + 4, label, "key"))
    return join(*parts)


def _apart(places: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Ascending `places`, each at least `gap` below the one before, within [low, high] where they
    all fit."""
    moved: list[float] = []
    for place in places:
        moved.append(max(place, moved[-1] + gap if moved else low))
    ceiling = high  # what was pushed over the end is pushed back
    for index in reversed(range(len(moved))):
        moved[index] = min(moved[index], ceiling)
        ceiling = moved[index] - gap
    return moved


def shorten(label: str, characters: int) -> str:
    """`label` with its middle left out where it is longer than that: names differ at their ends."""
    if len(label) <= characters:
        return label
    head = (characters - 1) // 2
    return f"{label[:head]}…{label[len(label) - (characters - 1 - head) :]}"


def marker(role: str, x: float, y: float, radius: float = 4, tip: str | None = None) -> Markup:
    """The marker of a model, with `tip` shown by browsers on hover."""
    tip_tag = tag("title", tip) if tip else None
    if role not in CORNERS:
        return tag("circle", tip_tag, class_=f"mark {role}", cx=x, cy=y, r=round(radius, 2))
    corners = (f"{x + radius * dx:.2f},{y + radius * dy:.2f}" for dx, dy in CORNERS[role])
    return tag("polygon", tip_tag, class_=f"mark {role}", points=" ".join(corners))


def line(x1: float, y1: float, x2: float, y2: float, class_: str) -> Markup:
    """A straight line."""
    return tag("line", x1=x1, y1=y1, x2=x2, y2=y2, class_=class_)


def text(x: float, y: float, content: str, class_: str) -> Markup:
    """Text at a baseline; class `middle` or `end` sets the anchor."""
    return tag("text", content, x=round(x, 2), y=round(y, 2), class_=class_)


def drawing(
    identifier: str, title: str, description: str, size: tuple[float, float], *parts: str | None
) -> Markup:
    """The <svg> with its text alternative; `identifier` is unique on the page."""
    return tag(
        "svg",
        tag("title", title, id=f"{identifier}-title"),
        tag("desc", description, id=f"{identifier}-desc"),
        *parts,
        id=identifier,
        role="img",
        aria_labelledby=f"{identifier}-title",
        aria_describedby=f"{identifier}-desc",
        viewBox=f"0 0 {size[0]:g} {size[1]:g}",
        width=f"{size[0]:g}",
        height=f"{size[1]:g}",
    )
