"""The summary: GitHub-flavoured Markdown for the terminal, a pull request, a chat."""

from collections.abc import Sequence
from html import escape

from kdscale.report import facts, tables
from kdscale.report import formatting as units
from kdscale.report.content import Section, sections
from kdscale.report.facts import task_labels
from kdscale.report.load import ReportData
from kdscale.report.tables import Table


def render_markdown(run: ReportData) -> str:
    """Render the summary of `run`: headline, results, cost, cache, training."""
    results = run.results
    parts = [f"# {plain(results['run'])}", plain(facts.headline(results))]
    for content in tables.result_tables(results):
        parts += [f"## {plain(content.caption)}", table(content)]
    found = sections(run)
    parts += _part("Cost", found["cost"])
    if results["cache"] is not None:
        kept = units.number(results["cache"]["bytes_per_token"], 2)
        codec = plain(facts.codec_text(results["cache"]["codec"]))
        target = task_labels(results).target
        parts += ["## Cache", f"{kept} bytes per {target} stored, codec {codec}."]
        parts += map(plain, found["cache"].sentences)
    parts += _part("Training", found["training"])
    return "\n\n".join(parts) + "\n"


def _part(title: str, section: Section) -> list[str]:
    """Return a section under its title; nothing of one that says nothing."""
    said = [*map(plain, section.sentences), *map(table, section.tables)]
    return [f"## {title}", *said] if said else []


def table(content: Table) -> str:
    """Format a GitHub table, figures aligned to the right."""
    rules = [":---"] + ["---:"] * (len(content.header) - 1)
    return "\n".join(_row(cells) for cells in [content.header, rules, *content.rows])


def plain(text: str) -> str:
    """Escape `text` so that Markdown shows it as it is, without HTML or a broken table cell."""
    return " ".join(escape(text, quote=False).replace("|", "\\|").split())


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(plain(cell) for cell in cells)} |"
