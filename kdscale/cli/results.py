"""`kdscale evaluate` and `kdscale report`: the two last stages by themselves."""

from typing import Annotated

import typer

from kdscale.cli import options, run
from kdscale.cli.show import show

Output = Annotated[str, typer.Argument(metavar="OUTPUT", help="The run's output: a path or URL.")]


def evaluate(
    config: options.Config,
    overrides: options.Overrides = None,
    overwrite: options.Overwrite = False,
) -> None:
    """Evaluate teacher, student and control of a run whose models are complete."""
    run.run(config, overrides, only="evaluate", overwrite=overwrite)


def report(output: Output) -> None:
    """Write the report of a run from its results.json, and show it."""
    from kdscale.report import write_report
    from kdscale.store import open_store

    show(write_report(open_store(output)))
