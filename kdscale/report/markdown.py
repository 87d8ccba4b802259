"""The summary: GitHub-flavoured Markdown for the terminal, a pull request, a chat."""

from collections.abc import Sequence
from html import escape

from kdscale.report import facts, measured
from kdscale.report import formatting as units
from kdscale.report.facts import Table
from kdscale.report.labels import words_of
from kdscale.report.load import Run


def render_markdown(run: Run) -> str:
    """The summary of `run`: headline, tables of results, cache, stages."""
    results = run.results
    parts = [f"# {plain(results['run'])}", plain(facts.headline(results))]
    for content in measured.result_tables(results):
        parts += [f"## {plain(content.caption)}", table(content)]
    if results["cache"] is not None:
        kept = units.number(results["cache"]["bytes_per_token"], 2)
        codec = plain(facts.codec_text(results["cache"]["codec"]))
        target = words_of(results).target
        parts += ["## Cache", f"{kept} bytes a {target} at rest, codec {codec}."]
    if results["seconds"]:
        parts += ["## Stages", table(facts.stage_table(results))]
    return "\n\n".join(parts) + "\n"


def table(content: Table) -> str:
    """A GitHub table; figures are aligned to the right."""
    rules = [":---"] + ["---:"] * (len(content.header) - 1)
    return "\n".join(_row(cells) for cells in [content.header, rules, *content.rows])


def plain(text: str) -> str:
    """`text` as Markdown that shows it as it is: no HTML, no table cell or line ends early."""
    return " ".join(escape(text, quote=False).replace("|", "\\|").split())


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(plain(cell) for cell in cells)} |"
