"""`kdscale status`: of a run as its store shows it, or of a job as its cluster does."""

import json
import time
from collections.abc import Iterator
from contextlib import suppress
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from kdscale.cli import jobs, options
from kdscale.errors import ExitCode, KdscaleError
from kdscale.utils.text_table import terminal_width

if TYPE_CHECKING:
    from kdscale.run.status import RunStatus
    from kdscale.store import Store

_EXIT_CODES = {
    "failed": ExitCode.FAILED,
    "lost": ExitCode.FAILED,
    "stopped": ExitCode.STOPPED,
}


def status(
    thing: Annotated[
        str,
        typer.Argument(
            metavar="RUN|JOB",
            help="Output of a run (a URL or a folder) or its config (.yaml); else a job's id.",
        ),
    ],
    address: options.Address = None,
    backend: options.BackendName = None,
    kube: options.Kube = None,
    as_json: options.AsJson = False,
    watch: Annotated[bool, typer.Option("--watch", help="Repeat until the run ends.")] = False,
    every: Annotated[
        float,
        typer.Option(
            min=0.1,
            metavar="SECONDS",
            callback=options.finite,
            help="Seconds between two looks.",
        ),
    ] = 5.0,
) -> None:
    """Print the progress of a run, from its store alone; or a job's status, from its cluster.

    Exit code 1 for a run that failed or whose driver was lost, 5 for one that was stopped; for
    a job, the code of its status.
    """
    if not jobs.is_run(thing):
        if watch:
            raise typer.BadParameter(f"{thing!r} is no run, and --watch is for runs.")
        _job_status(thing, address, backend, kube, as_json)
        return
    from kdscale.run.status import run_status

    output = _output(thing)
    looks = _looks(output, every) if watch else iter([run_status(output)])
    state = _print_json(looks) if as_json else _show(looks) if watch else _print(looks)
    raise typer.Exit(_EXIT_CODES.get(state, ExitCode.OK))


def _job_status(
    thing: str, address: str | None, backend: str | None, kube: str | None, as_json: bool
) -> None:
    """Print a job's status.

    Where no cluster is named and the job is unknown, the error is that of a mistyped folder.
    """
    from kdscale.submit.cluster import environment_address
    from kdscale.submit.job import UnknownJobError, UnreachableError

    is_named = any(option is not None for option in (address, backend, kube))
    try:
        jobs.status(thing, address, backend, kube, as_json)
    except (UnknownJobError, UnreachableError) as error:
        if is_named or jobs.recorded(thing) is not None:
            raise
        there = f" {error.problem}" if environment_address() else ""
        raise type(error)(
            f"There is no such folder {thing!r} here, and no such job was submitted from here"
            f"{_near(thing) or '.'}{there}",
            "Give a run's output or config, or a job's id; with --address or --backend, where it "
            "was submitted from another machine.",
        ) from error


def _output(thing: str) -> "Store":
    """Return the store of the run `thing`. KdscaleError for a folder that does not exist."""
    from kdscale.config import load_config
    from kdscale.store import open_store

    if jobs.is_config(thing):
        return open_store(load_config(thing, ()).output)
    store = open_store(thing)
    folder = store.local_path()
    if folder is not None and not folder.is_dir():
        what = "it is a file" if folder.is_file() else "there is no such folder"
        raise KdscaleError(
            f"There is no run in {thing!r}, as {what}{_near(thing) or '.'}",
            "Give the `output` of a run's config, the config itself, or a job's id.",
        )
    return store


def _near(thing: str) -> str:
    """Return a folder beside it or a submitted job with a similar name, as a question."""
    from kdscale.submit.records import similar_job

    path, found = Path(thing).expanduser(), None
    with suppress(OSError):
        beside = [each.name for each in path.parent.iterdir() if each.is_dir()]
        if near := get_close_matches(path.name, beside, 1):
            found = str(path.with_name(near[0]))
    found = found or similar_job(thing)
    return f": did you mean {found!r}?" if found else ""


def _looks(output: "Store", every: float) -> Iterator["RunStatus"]:
    """Yield the status every few seconds, until the run has ended."""
    from kdscale.run.status import run_status

    while True:
        found = run_status(output)
        yield found
        if found.state != "running":
            return
        time.sleep(every)


def _print_json(looks: Iterator["RunStatus"]) -> str:
    for found in looks:
        typer.echo(json.dumps(found.as_dict()))
    return found.state


def _print(looks: Iterator["RunStatus"]) -> str:
    from kdscale.run.status_text import status_lines

    for found in looks:
        typer.echo("\n".join(status_lines(found, terminal_width())))
    return found.state


def _show(looks: Iterator["RunStatus"]) -> str:
    """Update the lines in place, on a terminal."""
    from rich.console import Console
    from rich.live import Live
    from rich.text import Text

    from kdscale.run.status_text import status_lines

    with Live(console=Console(), auto_refresh=False) as live:
        for found in looks:
            live.update(Text("\n".join(status_lines(found, terminal_width()))), refresh=True)
    return found.state
