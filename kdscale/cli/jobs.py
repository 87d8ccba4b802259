"""Jobs on a cluster: list, status, logs, wait, stop.

stdout carries what a script wants (a log, or one JSON object), stderr what a person wants. Exit
codes come from a job's final status: see kdscale/submit/job.py.
"""

import json
import sys
import time
from typing import TYPE_CHECKING, Annotated, Any, TextIO

import typer

from kdscale.cli import options
from kdscale.errors import ExitCode, KdscaleError

if TYPE_CHECKING:
    from kdscale.submit import Backend, Job

AGAIN_SECONDS = 2.0
"""Within this time a second Ctrl-C asks the job to stop."""

# Beyond the grace that a stop request gives, before the job is signalled: a driver looks for
# requests every few seconds.
_STOP_MARGIN_SECONDS = 30


def list_(
    address: options.Address = None,
    backend: options.BackendName = "ray",
    kube: options.Kube = None,
    as_json: options.AsJson = False,
) -> None:
    """List jobs, oldest first."""
    from kdscale.submit import open_backend

    jobs = open_backend(backend, address, kube).list()
    if as_json:
        print_json({"jobs": [job.facts() for job in jobs]})
        return
    for job in jobs:
        typer.echo(f"{job.id}\t{job.status}\t{job.metadata.get('job_name', '')}")


def status(job: str, address: str | None, backend: str, kube: str | None, as_json: bool) -> None:
    """Print a job's status, and exit with the code for it."""
    from kdscale.submit import open_backend

    at = open_backend(backend, address, kube, say=say)
    conclude(at, at.details(job), as_json, sys.stdout)


def logs(
    job: options.JobId,
    address: options.Address = None,
    backend: options.BackendName = "ray",
    kube: options.Kube = None,
    follow: Annotated[
        bool, typer.Option("-f", "--follow", help="Follow to the job's end.")
    ] = False,
    since: Annotated[
        int | None,
        typer.Option(
            "--since",
            parser=options.duration,
            metavar="TIME",
            help="Only what was written in the last 5m, 2h.",
        ),
    ] = None,
    timeout: options.Timeout = None,
) -> None:
    """Print a job's log so far, or with -f until it ends, and exit with the job's status."""
    options.check_timeout(timeout, follow)
    _check_id(job)
    from kdscale.submit import offset_since, open_backend

    at = open_backend(backend, address, kube, say=say)
    skip = 0
    if since is not None:
        cutoff = time.time() - since
        skip = offset_since(at.log(job), cutoff, at.details(job).started)
    if follow:
        conclude(at, watch(at, job, sys.stdout, timeout, skip), False, sys.stderr)
    typer.echo(at.log(job)[skip:], nl=False)


def wait(
    job: options.JobId,
    address: options.Address = None,
    backend: options.BackendName = "ray",
    kube: options.Kube = None,
    timeout: options.Timeout = None,
    as_json: options.AsJson = False,
) -> None:
    """Wait until a job has ended, without its log, and exit with the job's status."""
    _check_id(job)
    from kdscale.submit import open_backend

    at = open_backend(backend, address, kube, say=say)
    conclude(at, watch(at, job, None, timeout), as_json, sys.stderr)


def stop(
    job: options.JobId,
    address: options.Address = None,
    backend: options.BackendName = "ray",
    kube: options.Kube = None,
    grace: Annotated[
        int | None,
        typer.Option(
            "--grace",
            parser=options.duration,
            metavar="TIME",
            help="Time to write its checkpoint and exit, before it is killed. Default: that of the "
            "submission.",
        ),
    ] = None,
) -> None:
    """Stop a job and wait until it has ended: it writes a checkpoint, then exits."""
    _check_id(job)
    from kdscale.submit import describe, follow, open_backend
    from kdscale.submit.job import WaitTimeoutError

    at = open_backend(backend, address, kube, say=say)
    if not at.stop(job, grace):
        say("The job had ended before.")
    limit = None if grace is None else float(grace + _STOP_MARGIN_SECONDS)
    try:
        ended = follow(at, job, None, timeout_seconds=limit)
    except WaitTimeoutError:
        at.stop(job)
        ended = follow(at, job, None)
    except KeyboardInterrupt as error:
        say("\nDetached; the job has been asked to stop.")
        raise typer.Exit(ExitCode.DETACHED) from error
    at.clean(ended)
    say(describe(ended))


def watch(
    backend: "Backend", job: str, out: TextIO | None, timeout: int | None = None, skip: int = 0
) -> "Job":
    """Follow the job to its end, its log on `out` from character `skip` on.

    Ctrl-C detaches with exit code 130; a second one within AGAIN_SECONDS asks the job to stop.
    """
    from kdscale.submit import follow

    def write(text: str) -> None:
        assert out is not None
        out.write(text)
        out.flush()

    try:
        return follow(
            backend, job, None if out is None else write, skip=skip, timeout_seconds=timeout
        )
    except KeyboardInterrupt as error:
        _detach(backend, job)
        raise typer.Exit(ExitCode.DETACHED) from error


def conclude(backend: "Backend", job: "Job", as_json: bool, words: TextIO, **more: Any) -> None:
    """Print the job's status, and exit with the code for it. `more` goes into the JSON object."""
    from kdscale.submit import describe, exit_code

    if job.is_over:
        backend.clean(job)
    if as_json:
        print_json(more | job.facts())
    else:
        print(describe(job), file=words)
    raise typer.Exit(exit_code(job))


def next_commands(backend: "Backend", job: str) -> None:
    """Print the commands for the job."""
    for command in (f"status {job}", f"logs -f {job}", f"stop {job}"):
        say(f"  kdscale {command}{backend.options}")


def say(text: str) -> None:
    """Print on stderr; stdout stays for scripts."""
    typer.echo(text, err=True)


def print_json(content: dict[str, Any]) -> None:
    """Print the one JSON object of a command."""
    typer.echo(json.dumps(content))


def _check_id(job: str) -> None:
    """Raise KdscaleError for a run's output or config in place of a job's id."""
    if "/" in job or job.endswith((".yaml", ".yml")):
        raise KdscaleError(
            f"{job!r} is a path or a URL, not a job's id.",
            "Give the id that `kdscale submit` printed (`kdscale list` shows those there are). "
            "`kdscale status` takes a run's output too, and says which job drives it.",
        )


def _detach(backend: "Backend", job: str) -> None:
    try:
        # Inside the block: a second Ctrl-C may come before the sleep.
        say(f"\nDetached; the job continues. Ctrl-C again within {AGAIN_SECONDS:.0f} s stops it.")
        time.sleep(AGAIN_SECONDS)
    except KeyboardInterrupt:
        backend.stop(job)
        say(f"Asked the job to stop. See it end: kdscale wait {job}{backend.options}")
    else:
        say(f"Follow it again: kdscale logs -f {job}{backend.options}")
