"""`kdscale init`: a starter config with every field explained."""

from pathlib import Path
from typing import Annotated

import typer

from kdscale.errors import KdscaleError


def init(
    path: Annotated[str, typer.Argument(metavar="PATH", help="File to write.")] = "kdscale.yaml",
) -> None:
    """Write a starter config: the quickstart, with every field and what it means."""
    from kdscale.config.starter import starter_yaml

    text = starter_yaml()
    target = Path(path)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with target.open("x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError as error:
        raise KdscaleError(
            f"{path} is there already.", "Give another path, or move that file away."
        ) from error
    except OSError as error:
        raise KdscaleError(
            f"{path} cannot be written: {error.strerror}.", "Give a path that you may write to."
        ) from error
    typer.echo(f"Wrote {path}. Run it with: kdscale run {path}", err=True)
