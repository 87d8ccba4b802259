"""The `kdscale` program. Only typer and the standard library are imported before a command runs.

A KdscaleError becomes two lines on stderr, its problem and its fix, and exit code 2 (or the code
that its class names). KDSCALE_DEBUG=1 shows the traceback as well. So does what a store, a disk or
a hub says, in the words of `store.errors`. Any other exception is our own bug and keeps its
traceback.
"""

import os
import sys
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress

import typer

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

app = typer.Typer(
    name="kdscale",
    help="Distil large Transformers into small ones at cluster scale; pay for the teacher once.",
    no_args_is_help=True,
    add_completion=False,
    # KdscaleErrors are printed below; other tracebacks stay plain, fit for a job's log.
    pretty_exceptions_enable=False,
)
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
app.add_typer(cache.app, name="cache", rich_help_panel="Look into things")
app.add_typer(data.app, name="data", rich_help_panel="Look into things")
app.command("init", rich_help_panel="Look into things")(init.init)
app.command("doctor", rich_help_panel="Look into things")(doctor.doctor)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the program with `arguments` (those of the command line when not given), and exit."""
    with reported_errors():
        app(args=arguments, prog_name="kdscale")


@contextmanager
def reported_errors() -> Iterator[None]:
    """A KdscaleError in the block, and what means one, is printed, without secrets, and ends the
    program."""
    try:
        yield
    except Exception as error:
        from kdscale.store.errors import explain
        from kdscale.store.redact import redact

        told = error if isinstance(error, KdscaleError) else explain(error)
        if told is None:
            raise
        if os.environ.get("KDSCALE_DEBUG") == "1":
            traceback.print_exc()
        text = redact(f"error: {told.problem}\nfix: {told.fix}")
        with suppress(OSError):  # What is left in it may be what did not fit the disk.
            sys.stdout.flush()
        print(text, file=sys.stderr, flush=True)
        sys.exit(getattr(told, "exit_code", 2))
