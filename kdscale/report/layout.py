"""A page and the blocks it is made of: sections, figures, tables.

A page holds no script and a content security policy that forbids every request, so that it can be
mailed, archived, or served from a bucket and looks the same in ten years.

Sections, pairs and figures are None when they have nothing to show, so that the page needs no
conditions of its own.
"""

import re
from collections.abc import Iterable, Sequence

from kdscale.report.facts import KeyFigure, Table
from kdscale.report.markup import Markup, tag
from kdscale.report.style import CSS

_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"


class Section(Markup):
    """A section's markup, which knows its heading and its place on the page."""

    heading: str
    anchor: str


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


def section(title: str, *parts: str | None, note: str | None = None) -> Section | None:
    """The section, or None where no part has anything to show."""
    if not any(parts):
        return None
    anchor = re.sub(r"\W+", "-", title.lower()).strip("-")
    heading = tag("h2", title, id=f"{anchor}-heading")
    lead = tag("p", note, class_="note") if note else None
    labelled = f"{anchor}-heading"
    made = Section(tag("section", heading, lead, *parts, id=anchor, aria_labelledby=labelled))
    made.heading, made.anchor = title, anchor
    return made


def contents(sections: Sequence[Section | None]) -> Markup:
    """Links to the sections that are there."""
    links = (tag("a", s.heading, href=f"#{s.anchor}") for s in sections if s is not None)
    items = tag("ul", *(tag("li", link) for link in links))
    return tag("nav", items, aria_label="Sections", class_="contents")


def tiles(figures: Sequence[KeyFigure]) -> Markup | None:
    """The key figures, large."""
    items = (tag("li", tag("strong", f.value), " ", tag("span", f.meaning)) for f in figures)
    return tag("ul", *items, class_="tiles") if figures else None


def pair(figures: Sequence[Markup | None]) -> Markup | None:
    """Figures side by side where the page is wide enough."""
    return tag("div", *figures, class_="pair") if any(figures) else None


def trio(tables: Sequence[Markup | None]) -> Markup | None:
    """Small tables side by side where the page is wide enough."""
    return tag("div", *tables, class_="trio") if any(tables) else None


def figure(title: str, caption: str, chart: Markup, data: Table | None = None) -> Markup | None:
    """A chart under its title and caption, its `data` to unfold below; None where there is none."""
    if not chart:
        return None
    heading = tag("figcaption", tag("h3", title), tag("p", caption) if caption else None)
    drawn = _scroll(chart, f"Chart: {title}")
    return tag("figure", heading, drawn, _unfold(data), aria_label=title)


def _unfold(data: Table | None) -> Markup | None:
    if data is None or not data.rows:
        return None
    summary = tag("summary", "Data", tag("span", f" of {data.caption}", class_="spoken"))
    return tag("details", summary, figures_table(data), class_="data")


def _scroll(content: Markup, label: str) -> Markup:
    """`content` in a box that scrolls sideways where the page is narrow, by keyboard too."""
    return tag("div", content, class_="scroll", tabindex="0", role="group", aria_label=label)


def figures_table(table: Table) -> Markup:
    """A table of figures with a header row; it scrolls sideways where the page is narrow."""
    models = table.header[0] == "Model"  # their marker, as in the charts, stands before the name
    rows = (
        tag(
            "tr",
            tag("th", row[0], scope="row", class_=row[0] if models else None),
            *(tag("td", cell) for cell in row[1:]),
        )
        for row in table.rows
    )
    return _table(table, rows, "figures")


def shares_table(table: Table) -> Markup:
    """A table of counts, each cell shaded by its share of its row."""

    def row(name: str, cells: Sequence[str]) -> Markup:
        counts = [int(cell) for cell in cells]
        total = max(1, sum(counts))
        shades = (
            tag("td", f"{count:,}", style=f"--share: {100 * count / total:.0f}%")
            for count in counts
        )
        return tag("tr", tag("th", name, scope="row"), *shades)

    return _table(table, (row(name, cells) for name, *cells in table.rows), "figures shares")


def _table(table: Table, rows: Iterable[Markup], class_: str) -> Markup:
    header = tag("tr", *(tag("th", name, scope="col") for name in table.header))
    parts = tag("caption", table.caption), tag("thead", header), tag("tbody", *rows)
    return _scroll(tag("table", *parts, class_=class_), f"Table: {table.caption}")


def text_table(table: Table) -> Markup:
    """A table of words, which wrap."""
    rows = (
        tag("tr", tag("th", row[0], scope="row"), *(tag("td", cell) for cell in row[1:]))
        for row in table.rows
    )
    return _table(table, rows, "words")


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
