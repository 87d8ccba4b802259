"""Reports and tables in the terminal."""

from typing import TYPE_CHECKING

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
    console.print(Markdown(markdown))


def aligned(table: "Table") -> str:
    """Return a table in columns, the first one flush left, and its caption."""
    lines = [table.header, *table.rows]
    widths = [max(len(line[column]) for line in lines) for column in range(len(table.header))]
    text = "\n".join(
        "  ".join(
            cell.ljust(width) if column == 0 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        )
        for line in lines
    )
    return f"{text}\n\n{table.caption}"
