"""`kdscale init`: a starter config."""

from pathlib import Path
from typing import Annotated

import typer

from kdscale.errors import KdscaleError


def init(
    path: Annotated[str, typer.Argument(metavar="PATH", help="File to write.")] = "kdscale.yaml",
    full: Annotated[
        bool, typer.Option("--full", help="Write every field, with its meaning.")
    ] = False,
) -> None:
    """Write a starter config, which runs on two CPUs in minutes: what most users set."""
    from kdscale.config.starter import starter_yaml

    text = starter_yaml(full)
    target = Path(path)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with target.open("x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError as error:
        raise KdscaleError(
            f"{path} already exists.", "Give another path, or move that file away."
        ) from error
    except OSError as error:
        raise KdscaleError(
            f"{path} cannot be written: {error.strerror}.", "Give a path that you may write to."
        ) from error
    typer.echo(f"Wrote {path}. Run it with: kdscale run {path}", err=True)
