"""`kdscale evaluate` and `kdscale report`: the two last stages by themselves."""

import json
from pathlib import Path
from typing import Annotated, Literal

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
    form: Annotated[
        Literal["text", "json"],
        typer.Option("--format", help="text: the summary; json: all that the page says."),
    ] = "text",
) -> None:
    """Write the report of a run from its results.json, and show it; of several, compare them."""
    from kdscale.evaluate.results import standard_json
    from kdscale.report import report_json, write_comparison, write_report
    from kdscale.store import open_store

    stores = [open_store(output) for output in outputs]
    if len(stores) == 1:
        summary = write_report(stores[0])
    else:
        summary = write_comparison(stores, to)
        typer.echo(f"Wrote {to}.", err=True)
    if form == "json":
        typer.echo(json.dumps(standard_json(report_json(stores)), indent=2))
    else:
        show(summary)
