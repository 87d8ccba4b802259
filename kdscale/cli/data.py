"""`kdscale data preview`: what the prepare stage will do with a corpus."""

from typing import TYPE_CHECKING, Annotated, Any

import typer

from kdscale.cli import options

if TYPE_CHECKING:
    from kdscale.data.preview import Preview, ShownRow

app = typer.Typer(help="Look at data before it is prepared.", no_args_is_help=True)

_SHOWN_CHARACTERS = 60


@app.callback()
def data() -> None:
    """Look at data before it is prepared."""


@app.command("preview")
def preview(
    config: options.Config,
    overrides: options.Overrides = None,
    source: Annotated[
        str, typer.Option(metavar="NAME", help="`train`, or an evaluation set.")
    ] = "train",
    documents: Annotated[
        int, typer.Option(min=1, metavar="N", help="Documents to read, from the first on.")
    ] = 20,
    rows: Annotated[int, typer.Option(min=0, metavar="N", help="Rows to show.")] = 3,
) -> None:
    """Documents, what each step of cleaning did to them, and rows with what is to be predicted.

    Reads the first documents here; nothing is written, and no cluster is needed.
    """
    from kdscale.config import load_config

    resolved = load_config(config, overrides or ())
    from kdscale.data.preview import preview as look
    from kdscale.teacher.existing import own_tokenizer

    with own_tokenizer(resolved) as tokenizer:
        found = look(
            resolved.data,
            resolved.task,
            source=source,
            documents=documents,
            rows=rows,
            teacher_tokenizer=tokenizer,
        )
    _print(found)


def _print(found: "Preview") -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False)
    table = Table("Document", "Characters", "Became", "Changed by", "Text", title="Documents")
    for seen in found.documents:
        size = f"{seen.before:,} -> {len(seen.text):,}" if seen.text else f"{seen.before:,}"
        start = " ".join(seen.text.split())[:_SHOWN_CHARACTERS]
        label = f"[{seen.label}] " if seen.label else ""
        cells = (seen.name, size, seen.fate, ", ".join(seen.changed_by), label + start)
        table.add_row(*map(_plain, cells))
    console.print(table)
    console.print(f"Tokenizer: {found.tokenizer}.")
    counts = found.counts
    console.print(
        f"{counts.rows:,} rows of {counts.documents:,} documents: {counts.targets:,} targets, "
        f"{counts.split:,} documents split, {counts.truncated:,} truncated, "
        f"{counts.padding:,} positions of padding.\n"
    )
    for number, row in enumerate(found.rows):
        console.print(_row(number, row))


def _plain(text: str) -> Any:
    """Text that says nothing to rich."""
    from rich.text import Text

    return Text(text)


def _row(number: int, row: "ShownRow") -> Any:
    """A row's tokens: what is to be predicted at a position stands behind it, in brackets where it
    is another than the next token."""
    from rich.text import Text

    shown = Text(f"Row {number} ({len(row.tokens)} tokens, {row.padding} of padding)\n", "bold")
    predicted = ["", *row.expected[:-1]]
    for at, token in enumerate(row.tokens):
        is_next = at > 0 and row.is_target[at - 1] and predicted[at] == token
        shown.append(token, style="green" if is_next else "dim")
        follows = row.tokens[at + 1] if at + 1 < len(row.tokens) else None
        if row.is_target[at] and row.expected[at] != follows:
            shown.append(f"[{row.expected[at]}]", style="bold yellow")
    return shown.append("\n")
