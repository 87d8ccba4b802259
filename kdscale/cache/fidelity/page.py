"""The HTML page of an audit: the recommended codec, two charts and the table.

Both axes are logarithmic: twice the bytes should divide an error by a factor, which is a straight
line there.
"""

from collections.abc import Callable, Sequence

from markupsafe import Markup

from kdscale.cache.fidelity.audit import Audit
from kdscale.cache.fidelity.codec_families import label
from kdscale.cache.fidelity.compare_codecs import Audited
from kdscale.cache.fidelity.tables import advice, audit_table, proof_sentence
from kdscale.report.charts import Note, line_chart
from kdscale.report.curves import Series
from kdscale.report.pages import Chart, render_page

# The kinds' places in the report's palette: colour, dash and marker go together.
ROLES = {"varopt": "student", "sample": "baseline", "topk": "teacher", "full": "second"}

Value = Callable[[Audited], float]


def render_audit(audit: Audit) -> str:
    """Render the whole page."""
    codecs = [codec for codec in audit.codecs if codec.config.kind != "full"]
    context = {
        "cache": audit.cache,
        "verdict": proof_sentence(audit),
        "advice": advice(audit),
        "positions": f"{audit.own.fidelity.widest.positions:,}",
        "error": _chart(
            "error", "Error of the mean gradient", codecs, audit, lambda c: c.fidelity.widest.error
        ),
        "variance": _chart("variance", "Variance", codecs, audit, lambda c: c.fidelity.variance),
        "codecs": audit_table(audit),
    }
    return render_page("fidelity.html.j2", context)


def _chart(
    identifier: str, title: str, codecs: Sequence[Audited], audit: Audit, value: Value
) -> Chart:
    """Draw a line a family over stored bytes; values of 0 are left out."""
    shown = [codec for codec in codecs if value(codec) > 0]
    if not shown:
        return Chart(title, Markup(""))
    families = list(dict.fromkeys(codec.family for codec in shown))
    marked = (("this cache", audit.own, True), ("recommended", audit.recommended, False))
    svg = line_chart(
        identifier,
        title,
        [_family([c for c in shown if c.family == family], value) for family in families],
        title.lower(),
        x_label="stored bytes per token",
        log=True,
        notes=[
            Note(name, ROLES[c.config.kind], c.bytes_stored, value(c), above)
            for name, c, above in marked
            if c is not None and c in shown
        ],
        description=(
            f"{title} of {len(shown)} codecs, from {shown[0].bytes_stored:.1f} to "
            f"{shown[-1].bytes_stored:.1f} bytes per token. The table below has all figures."
        ),
    )
    return Chart(title, svg)


def _family(codecs: Sequence[Audited], value: Value) -> Series:
    """Return one family's line; its markers name their codecs on hover."""
    kind = codecs[0].config.kind
    return Series(
        kind,
        ROLES[kind],
        [(c.bytes_stored, value(c)) for c in codecs],
        tips=[f"{label(c.config)}: {c.bytes_stored:.1f} B, {value(c):.3g}" for c in codecs],
    )
