"""An audit as one self-contained HTML page: what is recommended, two charts, the table.

Charts, colours and layout are the report's, so that the page needs no script, follows the reader's
colour scheme and tells families apart by colour, dash and marker. Both axes are logarithmic: twice
the bytes should divide an error by a factor, which is a straight line there.
"""

import math
from collections.abc import Callable, Sequence

from kdscale.cache.fidelity.audit import Audit
from kdscale.cache.fidelity.codec_families import label
from kdscale.cache.fidelity.compare_codecs import Audited
from kdscale.cache.fidelity.tables import advice, audit_table, proof_sentence
from kdscale.report.layout import figure, figures_table, page, section
from kdscale.report.markup import Markup, join, tag
from kdscale.report.svg import Box, Scale, drawing, legend, line, marker, text

# The kinds' places in the report's palette: colour, dash and marker go together.
ROLES = {"varopt": "student", "sample": "baseline", "topk": "teacher", "full": "second"}
WIDTH = 720.0

Value = Callable[[Audited], float]


def render_page(audit: Audit) -> str:
    """The whole page."""
    header = tag(
        "header",
        tag("p", "Audit of a logit cache", class_="eyebrow"),
        tag("h1", audit.cache),
        tag("p", proof_sentence(audit), class_="lead"),
    )
    return page(f"Audit of {audit.cache}", header, tag("main", *_sections(audit)))


def _sections(audit: Audit) -> list[Markup | None]:
    wide = audit.own.fidelity.widest.positions
    shown = [codec for codec in audit.codecs if codec.config.kind != "full"]
    error, variance = "Error of the mean gradient", "Variance"
    charts = [
        figure(
            error,
            f"Over {wide:,} positions, relative to the true mean gradient. Noise falls with the "
            "number of positions, bias does not. A line for every size of head or value; a marker "
            "tells its codec on hover.",
            bytes_chart("error", error, shown, audit, lambda c: c.fidelity.widest.error),
        ),
        figure(
            variance,
            "Of a position's target, summed over the vocabulary. What draws nothing has none.",
            bytes_chart("variance", variance, shown, audit, lambda c: c.fidelity.variance),
        ),
    ]
    return [
        section("Recommended", tag("pre", tag("code", advice(audit)))),
        section("Bytes against faithfulness", *charts),
        section("All codecs", figures_table(audit_table(audit))),
    ]


def bytes_chart(
    identifier: str, title: str, codecs: Sequence[Audited], audit: Audit, value: Value
) -> Markup:
    """A line a family over bytes at rest, logarithmic both ways; values of 0 are left out."""
    shown = [codec for codec in codecs if value(codec) > 0]
    if not shown:
        return Markup("")
    families = list(dict.fromkeys(codec.family for codec in shown))
    kinds = [kind for kind in ROLES if any(codec.config.kind == kind for codec in shown)]
    keys, lowest = legend(58, 14, WIDTH - 58, [(ROLES[kind], "strong", kind) for kind in kinds])
    box = Box(58, lowest + 36, WIDTH - 16, lowest + 316)
    x = _log_scale([c.bytes_at_rest for c in shown], box.left, box.right)
    y = _log_scale([value(c) for c in shown], box.bottom, box.top)
    lines = [_family([c for c in shown if c.family == family], value, x, y) for family in families]
    return drawing(
        identifier,
        title,
        f"{title} of {len(shown)} codecs, from {shown[0].bytes_at_rest:.1f} to "
        f"{shown[-1].bytes_at_rest:.1f} bytes a token. The table below has all figures.",
        (WIDTH, box.bottom + 46),
        _log_axes(box, x, y, "bytes at rest a token", title),
        *lines,
        *_named("this cache", audit.own, value, (x, y), above=True),
        *_named("recommended", audit.recommended, value, (x, y), above=False),
        keys,
    )


def _family(codecs: Sequence[Audited], value: Value, x: Scale, y: Scale) -> Markup:
    """One family's line and markers, each with its codec and figures on hover."""
    places = [_place(codec, value, (x, y)) for codec in codecs]
    role = ROLES[codecs[0].config.kind]
    marks = (
        marker(role, *at, 4, f"{label(c.config)}: {c.bytes_at_rest:.1f} B, {value(c):.3g}")
        for c, at in zip(codecs, places, strict=True)
    )
    path = " ".join(f"{left},{top}" for left, top in places)
    return join(tag("polyline", points=path, class_=f"series strong {role}"), *marks)


def _named(
    name: str, codec: Audited | None, value: Value, scales: tuple[Scale, Scale], above: bool
) -> list[Markup]:
    """A larger marker with a name, where lines that fall to the right leave room: right above it,
    or left below."""
    if codec is None or codec.config.kind == "full" or value(codec) <= 0:
        return []
    left, top = _place(codec, value, scales)
    spot = marker(ROLES[codec.config.kind], left, top, 6.5)
    if above:
        return [spot, text(left + 10, top - 8, name, "strong")]
    return [spot, text(left - 10, top + 18, name, "strong end")]


def _place(codec: Audited, value: Value, scales: tuple[Scale, Scale]) -> tuple[float, float]:
    """Where a codec stands, in pixels."""
    x, y = scales
    return x(math.log10(codec.bytes_at_rest)), y(math.log10(value(codec)))


def _log_scale(values: Sequence[float], start: float, end: float) -> Scale:
    """The decimal logarithms of positive `values`, with air on both sides."""
    low, high = math.log10(min(values)), math.log10(max(values))
    return Scale(low - 0.08, high + 0.08, start, end)


def _log_axes(box: Box, x: Scale, y: Scale, x_label: str, y_label: str) -> Markup:
    """Grid lines and labels at 1, 2 and 5 times powers of ten."""
    parts = []
    for value in _log_ticks(y):
        at = y(math.log10(value))
        parts.append(line(box.left, at, box.right, at, "grid"))
        parts.append(text(box.left - 8, at + 4, f"{value:g}", "tick end"))
    for value in _log_ticks(x):
        at = x(math.log10(value))
        parts.append(line(at, box.bottom, at, box.bottom + 5, "axis"))
        parts.append(text(at, box.bottom + 19, f"{value:g}", "tick middle"))
    parts.append(line(box.left, box.bottom, box.right, box.bottom, "axis"))
    parts.append(text((box.left + box.right) / 2, box.bottom + 38, x_label, "label middle"))
    parts.append(text(box.left, box.top - 10, y_label.lower(), "label"))
    return join(*parts)


def _log_ticks(scale: Scale) -> list[float]:
    powers = range(math.floor(scale.low), math.ceil(scale.high) + 1)
    values = (factor * 10.0**power for power in powers for factor in (1, 2, 5))
    return [value for value in values if scale.low <= math.log10(value) <= scale.high]
