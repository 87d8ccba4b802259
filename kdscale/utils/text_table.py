"""Tables and paragraphs as plain text, no wider than the terminal."""

import shutil
import sys
import textwrap
from collections.abc import Sequence

_BETWEEN = "  "
UNBROKEN = "\N{NO-BREAK SPACE}"
"""A space at which `wrapped` breaks no line; it comes out as a plain one."""


def terminal_width() -> int | None:
    """Return the columns of the terminal that stdout is; None where it is a file or a pipe."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else None


def aligned(rows: Sequence[Sequence[str]], width: int | None = None) -> str:
    """Align rows in columns, the first one flush left; rows[0] is the header.

    Where that is wider than `width`, return a list instead: each row's cells after their column's
    name, broken between cells only.
    """
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    if width is not None and sum(widths) + len(_BETWEEN) * (len(widths) - 1) > width:
        return _as_list(rows, width)
    return "\n".join(
        _BETWEEN.join(
            cell.ljust(widths[column]) if column == 0 else cell.rjust(widths[column])
            for column, cell in enumerate(row)
        ).rstrip()
        for row in rows
    )


def wrapped(text: str, width: int | None, indent: str = "") -> str:
    """Break each line of `text` at spaces; lines that follow a break begin with `indent`.

    A word that is longer than a line stays whole.
    """
    if width is None:
        return text.replace(UNBROKEN, " ")
    lines = "\n".join(
        textwrap.fill(
            line,
            width,
            subsequent_indent=indent,
            break_long_words=False,
            break_on_hyphens=False,
        )
        for line in text.splitlines()
    )
    return lines.replace(UNBROKEN, " ")


def _as_list(rows: Sequence[Sequence[str]], width: int) -> str:
    """Return the first column's cells, each with the row's other cells below it."""
    header, *others = rows
    lines = [header[0]] if header[0] else []
    for first, *cells in others:
        lines.append(wrapped(f"  {first}", width, "    "))
        named = [
            f"{name}: {cell}".replace(" ", UNBROKEN)
            for name, cell in zip(header[1:], cells, strict=True)
            if cell
        ]
        lines.append(wrapped(f"    {'; '.join(named)}", width, "    "))
    return "\n".join(lines)
