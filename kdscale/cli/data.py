"""`kdscale data`: what the prepare stage will do with a corpus, and a tokenizer of what it did."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from kdscale.cli import options

if TYPE_CHECKING:
    from kdscale.data.preview import Preview, RowPreview

app = typer.Typer(
    help="Look at data before it is prepared; train a student's tokenizer.", no_args_is_help=True
)

_SHOWN_CHARACTERS = 60
# Around what is to be predicted, where no colour tells.
_BRACKETS = ("\u27e6", "\u27e7")
_COLOURS = ("", "")


@app.callback()
def data() -> None:
    """Look at data before it is prepared; train a student's tokenizer."""


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
    from kdscale.teacher.pretrained import own_tokenizer

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


@app.command("tokenizer")
def tokenizer(
    config: options.Config,
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="New folder to write to.")],
    vocab_size: Annotated[
        int, typer.Option(min=258, metavar="N", help="Ids, the 256 bytes included.")
    ] = 8192,
    overrides: options.Overrides = None,
) -> None:
    """Train a byte-level BPE on a run's prepared text, for distill.student.tokenizer.

    The prepare stage has to be complete; no cluster is needed.
    """
    from kdscale.config import load_config
    from kdscale.data.rows.texts import training_texts
    from kdscale.data.tokenizer import train_tokenizer
    from kdscale.errors import KdscaleError
    from kdscale.run.artifacts import RunArtifacts, resolve_paths

    if folder.exists():
        raise KdscaleError(f"{folder} exists already.", "Give a folder that does not exist yet.")
    prepared = RunArtifacts(resolve_paths(load_config(config, overrides or ()))).prepared
    info = train_tokenizer(training_texts(prepared), vocab_size, folder)
    typer.echo(f"{info.vocab_size:,} ids in {folder}")


def _print(found: "Preview") -> None:
    from dataclasses import asdict

    from rich.console import Console
    from rich.table import Table

    from kdscale.data.rows.manifest import left_out

    console = Console(highlight=False)
    table = Table("Document", "Characters", "Became", "Changed by", "Text", title="Documents")
    for seen in found.documents:
        size = f"{seen.before:,} -> {len(seen.text):,}" if seen.text else f"{seen.before:,}"
        start = " ".join(seen.text.split())[:_SHOWN_CHARACTERS]
        label = f"[{seen.label}] " if seen.label else ""
        cells = (seen.name, size, seen.outcome, ", ".join(seen.changed_by), label + start)
        table.add_row(*map(_plain, cells))
    console.print(table)
    for name, share in found.mixture:
        console.print(_plain(f"Source {name}: {share}."))
    for place, files in found.unread:
        console.print(_plain(f"Not read in {place}: {files}."))
    console.print(f"Tokenizer: {found.tokenizer}.")
    if found.chat is not None:
        console.print(_plain(f"Chat template: {found.chat}."))
    counts = found.counts
    source = f"{counts.documents:,} documents"
    if found.conversations is not None:
        source = f"{counts.documents:,} texts of {found.conversations:,} conversations"
    console.print(
        f"{counts.rows:,} rows of {source}: {counts.targets:,} targets, "
        f"{counts.split:,} documents split, {counts.truncated:,} truncated, "
        f"{counts.padding:,} positions of padding"
        + "".join(f", {part}" for part in left_out(asdict(counts)))
        + "."
    )
    is_coloured = console.color_system is not None and not console.no_color
    how = "green" if is_coloured else f"between {_BRACKETS[0]} and {_BRACKETS[1]}"
    console.print(f"What is to be predicted as the next token is {how}.\n")
    for number, row in enumerate(found.rows):
        console.print(_row(number, row, _COLOURS if is_coloured else _BRACKETS))


def _plain(text: str) -> Any:
    """Text that says nothing to rich."""
    from rich.text import Text

    return Text(text)


def _row(number: int, row: "RowPreview", brackets: tuple[str, str]) -> Any:
    """Return a row's tokens; those predicted as the next token are green and between `brackets`.

    Where another token is to be predicted at a position, it follows in square brackets.
    """
    from rich.text import Text

    shown = Text()
    shown.append(f"Row {number} ({len(row.tokens)} tokens, {row.padding} of padding)\n", "bold")
    predicted = ["", *row.expected[:-1]]
    was_next = False
    for at, token in enumerate(row.tokens):
        is_next = at > 0 and row.is_target[at - 1] and predicted[at] == token
        if is_next != was_next:
            shown.append(brackets[0] if is_next else brackets[1])
        was_next = is_next
        shown.append(token, style="green" if is_next else "dim")
        follows = row.tokens[at + 1] if at + 1 < len(row.tokens) else None
        if row.is_target[at] and row.expected[at] != follows:
            shown.append(f"[{row.expected[at]}]", style="bold yellow")
    return shown.append(f"{brackets[1] if was_next else ''}\n")
