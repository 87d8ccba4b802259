"""`kdscale doctor`: check this machine, a store and a cluster."""

import json
from dataclasses import asdict
from typing import Annotated

import typer

from kdscale.cli import options


def doctor(
    output: Annotated[
        str | None,
        typer.Option(
            "--output", metavar="URL", help="Also try to write and read this output, and how fast."
        ),
    ] = None,
    cluster: Annotated[
        str | None,
        typer.Option(
            "--cluster",
            metavar="ADDRESS",
            help="Also look at all nodes of this cluster, and whether they reach each other: "
            "auto, or HEAD:6379. Default: RAY_ADDRESS.",
        ),
    ] = None,
    as_json: options.AsJson = False,
) -> None:
    """Check versions, devices, compilers, memory, disk, W&B, store and cluster.

    Exit code 1 if something failed.
    """
    from kdscale.doctor import run_checks

    found = []
    for check in run_checks(output, cluster):
        found.append(check)
        if as_json:
            continue
        typer.echo(f"{check.word:<8} {check.name:<15} {check.value}")
        if check.fix:
            typer.echo(f"{'':<8} {'':<15} fix: {check.fix}")
    failed = any(check.word == "failed" for check in found)
    if as_json:
        checks = [asdict(check) for check in found]
        typer.echo(json.dumps({"failed": failed, "checks": checks}))
    raise typer.Exit(1 if failed else 0)
