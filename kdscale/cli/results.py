"""`kdscale evaluate` and `kdscale report`: the two last stages by themselves."""

from pathlib import Path
from typing import Annotated

import typer

from kdscale.cli import options, run
from kdscale.cli.show import show


def evaluate(
    config: options.Config,
    overrides: options.Overrides = None,
    overwrite: options.Overwrite = False,
) -> None:
    """Evaluate teacher, student and baseline of a run whose models are complete."""
    run.run(config, overrides, only="evaluate", overwrite=overwrite)


def report(
    outputs: Annotated[
        list[str], typer.Argument(metavar="OUTPUT...", help="Outputs of runs: paths or URLs.")
    ],
    to: Annotated[
        Path, typer.Option(metavar="FILE", help="Where the comparison of several runs goes.")
    ] = Path("comparison.html"),
) -> None:
    """Write the report of a run from its results.json, and show it; of several, compare them."""
    from kdscale.report import write_comparison, write_report
    from kdscale.store import open_store

    if len(outputs) == 1:
        show(write_report(open_store(outputs[0])))
        return
    show(write_comparison([open_store(output) for output in outputs], to))
    typer.echo(f"Wrote {to}.", err=True)
