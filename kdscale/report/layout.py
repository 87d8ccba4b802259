"""A page and the blocks it is made of: sections, figures, tables.

A page holds no script and a content security policy that forbids every request, so that it can be
mailed, archived, or served from a bucket and looks the same in ten years.

Sections, pairs and figures are None when they have nothing to show, so that the page needs no
conditions of its own.
"""

from kdscale.report.facts import Table
from kdscale.report.markup import Markup, tag
from kdscale.report.style import CSS

_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"


def page(title: str, *parts: str) -> str:
    """One self-contained HTML file of `parts`."""
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", http_equiv="Content-Security-Policy", content=_POLICY),
        tag("link", rel="icon", href="data:,"),
        tag("title", title),
        tag("style", Markup(CSS)),
    )
    return f"<!DOCTYPE html>\n{tag('html', head, tag('body', *parts), lang='en')}\n"


def section(title: str, *parts: str | None, note: str | None = None) -> Markup | None:
    """The section, or None where no part has anything to show."""
    if not any(parts):
        return None
    return tag("section", tag("h2", title), tag("p", note, class_="note") if note else None, *parts)


def pair(figures: list[Markup | None]) -> Markup | None:
    """Figures side by side where the page is wide enough."""
    return tag("div", *figures, class_="pair") if any(figures) else None


def figure(title: str, caption: str, chart: Markup) -> Markup | None:
    """A chart under its title and caption, or None where the chart is empty."""
    if not chart:
        return None
    heading = tag("figcaption", tag("strong", f"{title}. "), caption)
    return tag("figure", heading, tag("div", chart, class_="scroll"))


def figures_table(table: Table) -> Markup:
    """A table of figures with a header row; it scrolls sideways where the page is narrow."""
    models = table.header[0] == "Model"  # their marker, as in the charts, stands before the name
    header = tag("tr", *(tag("th", name, scope="col") for name in table.header))
    rows = (
        tag(
            "tr",
            tag("th", row[0], scope="row", class_=row[0] if models else None),
            *(tag("td", cell) for cell in row[1:]),
        )
        for row in table.rows
    )
    parts = tag("caption", table.caption), tag("thead", header), tag("tbody", *rows)
    content = tag("table", *parts, class_="figures")
    return tag(
        "div", content, class_="scroll", tabindex="0", role="region", aria_label=table.caption
    )


def texts_table(table: Table) -> Markup:
    """A table of names and texts, whose spaces and line ends are shown as they are."""
    rows = (
        tag("tr", tag("th", name, scope="row", class_=name), tag("td", text))
        for name, text in table.rows
    )
    return tag("table", tag("caption", table.caption), tag("tbody", *rows), class_="texts")


def facts_table(table: Table) -> Markup:
    """A table of names and values under a heading that already says what they are."""
    rows = (tag("tr", tag("th", name, scope="row"), tag("td", value)) for name, value in table.rows)
    caption = tag("caption", tag("span", table.caption, class_="spoken"))
    return tag("table", caption, tag("tbody", *rows), class_="facts")
