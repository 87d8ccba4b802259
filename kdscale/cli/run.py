"""`kdscale run`: run the stages of a config, here or on the cluster that Ray connects to."""

from typing import Annotated

import typer

from kdscale.cli import options
from kdscale.cli.show import show


def run(
    config: options.Config,
    overrides: options.Overrides = None,
    only: options.Only = None,
    start: options.Start = None,
    until: options.Until = None,
    overwrite: options.Overwrite = False,
    wait_for_lease: options.WaitForLease = None,
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="Check everything that the stages need; start none."),
    ] = False,
) -> None:
    """Run a config's stages: prepare, teacher, cache, distill, evaluate, report.

    Completed stages are skipped; interrupted ones resume. Anything that a stage would refuse is
    refused before the first one starts.
    """
    options.check_stages(only, start, until)
    from kdscale.config import load_config

    # Before the pipeline, whose imports take seconds: a mistake in the config shows at once.
    resolved = load_config(config, overrides or ())
    from kdscale.plan.expect import expect
    from kdscale.run.checks import check_run
    from kdscale.run.pipeline import run_pipeline

    if dry_run:
        found = check_run(resolved, only, start, overwrite, until)
        for note in found.notes:
            typer.echo(f"note: {note}")
        for what in found.checked:
            typer.echo(f"checked: {what}")
        typer.echo("Nothing was started.")
        return
    show(run_pipeline(resolved, only, start, overwrite, wait_for_lease, until, expect))
