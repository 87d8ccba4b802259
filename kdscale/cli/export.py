"""`kdscale export`: a run's model for others to use."""

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from kdscale.cli.show import show
from kdscale.export import Format

if TYPE_CHECKING:
    from kdscale.export.source import Source


def export(
    run: Annotated[
        str, typer.Argument(metavar="RUN", help="Output of a finished run: a path or URL.")
    ],
    to: Annotated[
        Path, typer.Option(metavar="FOLDER", help="Where the export goes: a new folder.")
    ],
    formats: Annotated[
        list[Format],
        typer.Option(
            "--format",
            help="A Hugging Face folder, ONNX, or ONNX with int8 weights; may be repeated.",
        ),
    ] = [Format.HF],  # noqa: B006
    model: Annotated[
        Literal["student", "baseline", "teacher"], typer.Option(help="Which of the run's models.")
    ] = "student",
    rows: Annotated[
        int, typer.Option(min=1, help="Rows of the validation set to compare logits on.")
    ] = 64,
    push: Annotated[
        str | None,
        typer.Option(
            metavar="OWNER/NAME", help="Then upload it to this repository of the hub; see HF_TOKEN."
        ),
    ] = None,
    private: Annotated[
        bool, typer.Option("--private/--public", help="Who may see a repository that is created.")
    ] = True,
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run",
            help="Make and check the export, list its files, and keep and push nothing.",
        ),
    ] = False,
) -> None:
    """Write a run's model as a Hugging Face folder or as ONNX, checked against its logits."""
    from transformers.utils.logging import disable_progress_bar

    from kdscale.export.export import check_formats, check_target, render
    from kdscale.export.export import export as write_export
    from kdscale.export.push import check_push
    from kdscale.export.push import push as push_folder
    from kdscale.export.source import find_source

    disable_progress_bar()
    check_target(to)
    check_formats(formats)
    if push is not None:
        check_push(push, with_token=not dry_run)
    source = find_source(run, model)
    if dry_run:
        _rehearse(source, formats, rows)
        hub = "" if push is None else f", then to {push} ({'private' if private else 'public'})"
        typer.echo(f"These files would go to {to}{hub}. None of them did.")
        return
    show(render(write_export(source, to, formats, rows=rows)))
    typer.echo(f"Wrote {to}.", err=True)
    if push is not None:
        typer.echo(push_folder(to, push, private=private))


def _rehearse(source: "Source", formats: list[Format], rows: int) -> None:
    """Make the export where nobody sees it, and show what it is."""
    from kdscale.export.export import export as write_export
    from kdscale.export.export import file_sizes, render, render_files

    with TemporaryDirectory(prefix="kdscale-export-") as scratch:
        folder = Path(scratch) / "export"
        show(render(write_export(source, folder, formats, rows=rows)))
        show(render_files(file_sizes(folder)))
