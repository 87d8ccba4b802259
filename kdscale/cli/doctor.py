"""`kdscale doctor`: what this machine lacks for a run."""

from typing import Annotated

import typer


def doctor(
    output: Annotated[
        str | None,
        typer.Option("--output", metavar="URL", help="Also try to write and read this output."),
    ] = None,
) -> None:
    """Check versions, devices, compiler, memory, disk and store. Exit code 1 if something fails."""
    from kdscale.doctor import run_checks

    failed = False
    for check in run_checks(output):
        failed |= check.word == "failed"
        typer.echo(f"{check.word:<8} {check.name:<14} {check.value}")
        if check.fix:
            typer.echo(f"{'':<8} {'':<14} fix: {check.fix}")
    raise typer.Exit(1 if failed else 0)
