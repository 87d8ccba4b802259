"""The `kdscale` program. Only typer and the standard library are imported before a command runs.

A KdscaleError becomes two lines on stderr, its problem and its fix, and the exit code of its class
(`kdscale.errors.ExitCode`); errors of a store, a disk or a hub are reworded by `store.errors` and
handled alike. KDSCALE_DEBUG=1 shows the traceback too. Any other exception is a bug and keeps its
traceback.
"""

import os
import sys
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Annotated, Any

import typer

from kdscale import __version__
from kdscale.cli import (
    cache,
    data,
    doctor,
    export,
    init,
    jobs,
    lm_eval,
    plan,
    results,
    run,
    status,
    submit,
)
from kdscale.errors import KdscaleError


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"kdscale {__version__}")
        raise typer.Exit


app = typer.Typer(
    name="kdscale",
    no_args_is_help=True,
    # KdscaleErrors are printed below; other tracebacks stay plain, fit for a job's log.
    pretty_exceptions_enable=False,
)


@app.callback()
def _program(
    version: Annotated[
        bool,
        typer.Option("--version", is_eager=True, callback=_version, help="Print the version."),
    ] = False,
) -> None:
    """Distil large Transformers into small ones at cluster scale; pay for the teacher once."""


app.command("run", rich_help_panel="Run")(run.run)
app.command("evaluate", rich_help_panel="Run")(results.evaluate)
app.command("lm-eval", rich_help_panel="Run")(lm_eval.lm_eval)
app.command("report", rich_help_panel="Run")(results.report)
app.command("export", rich_help_panel="Run")(export.export)
app.command("plan", rich_help_panel="Run")(plan.plan)
app.command("submit", rich_help_panel="Jobs")(submit.submit)
app.command("run-graph", hidden=True)(submit.run_graph)
app.command("list", rich_help_panel="Jobs")(jobs.list_)
app.command("status", rich_help_panel="Jobs")(status.status)
app.command("logs", rich_help_panel="Jobs")(jobs.logs)
app.command("wait", rich_help_panel="Jobs")(jobs.wait)
app.command("stop", rich_help_panel="Jobs")(jobs.stop)
app.add_typer(cache.app, name="cache", rich_help_panel="Inspect")
app.add_typer(data.app, name="data", rich_help_panel="Inspect")
app.command("init", rich_help_panel="Inspect")(init.init)
app.command("doctor", rich_help_panel="Inspect")(doctor.doctor)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the program with `arguments` (those of the command line when not given), and exit."""
    with reported_errors():
        command = typer.main.get_command(app)
        _plain_types(command)
        command(args=arguments, prog_name="kdscale")


def _plain_types(command: Any) -> None:
    """Show no type of flags in the help of a command and its subcommands, and N for numbers."""
    for option in [*command.params, command.get_help_option(typer.Context(command))]:
        if option.param_type_name == "option" and option.metavar is None:
            kind = option.type_descriptor.annotation
            option.metavar = {bool: "", int: "N", float: "X"}.get(kind)
    for each in getattr(command, "commands", {}).values():
        _plain_types(each)


@contextmanager
def reported_errors() -> Iterator[None]:
    """Print a KdscaleError raised in the block, without secrets, and exit with its code.

    So does an error of a store, a disk or a hub.
    """
    try:
        yield
    except Exception as error:
        from kdscale.store.errors import explain
        from kdscale.store.redact import redact

        known = error if isinstance(error, KdscaleError) else explain(error)
        if known is None:
            raise
        if os.environ.get("KDSCALE_DEBUG") == "1":
            traceback.print_exc()
        text = redact(f"error: {known.problem}\nfix: {known.fix}")
        with suppress(OSError):  # The rest of the buffer may not fit the disk.
            sys.stdout.flush()
        print(text, file=sys.stderr, flush=True)
        sys.exit(known.exit_code)
