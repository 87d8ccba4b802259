"""Reports and tables in the terminal."""

from typing import TYPE_CHECKING

from kdscale.utils import text_table
from kdscale.utils.text_table import terminal_width

if TYPE_CHECKING:
    from kdscale.report.tables import Table

_LOG_WIDTH = 140


def show(markdown: str) -> None:
    """Print Markdown, rendered; an empty text prints nothing."""
    if not markdown:
        return
    from rich.console import Console
    from rich.markdown import Markdown

    console = Console()
    if not console.is_terminal:
        # A log: rich would cut lines at 80 characters.
        console.width = max(console.width, _LOG_WIDTH)
    else:
        markdown = _narrow_tables(markdown, console.width)
    console.print(Markdown(markdown))


def aligned(table: "Table") -> str:
    """Return a table in columns, or as a list where the terminal is too narrow, and its caption."""
    width = terminal_width()
    text = text_table.aligned([table.header, *table.rows], width)
    return f"{text}\n\n{text_table.wrapped(table.caption, width)}"


def _narrow_tables(markdown: str, width: int) -> str:
    """Replace Markdown's tables that are wider than `width` by lists, which break between cells."""
    lines, found = [], []
    for line in [*markdown.splitlines(), ""]:
        if line.startswith("|"):
            found.append(line[2:-2].split(" | "))
            continue
        if found:
            header, _, *rows = found
            natural = sum(max(map(len, column)) + 2 for column in zip(header, *rows, strict=True))
            lines += _as_list(header, rows) if natural > width else _as_table(found)
            found = []
        lines.append(line)
    return "\n".join(lines)


def _as_table(rows: list[list[str]]) -> list[str]:
    return [f"| {' | '.join(row)} |" for row in rows]


def _as_list(header: list[str], rows: list[list[str]]) -> list[str]:
    """Return an entry a row and, below it, one for each of its other cells."""
    lines = []
    for first, *cells in rows:
        lines.append(f"- {first}")
        named = zip(header[1:], cells, strict=True)
        lines += [f"    - {name}: {cell}" for name, cell in named if cell]
    return lines
