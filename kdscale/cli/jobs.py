"""Jobs on a cluster: list, status, logs, wait, stop.

stdout carries what a script wants (a log, or one JSON object), stderr what a person wants. Exit
codes come from a job's final status: see kdscale/submit/job.py.
"""

import json
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TextIO

import typer

from kdscale.cli import options
from kdscale.errors import ExitCode, KdscaleError

if TYPE_CHECKING:
    from kdscale.submit import Backend, Job, Place, Record

AGAIN_SECONDS = 2.0
"""Within this time a second Ctrl-C asks the job to stop."""

# Beyond the grace that a stop request gives, before the job is signalled: a driver looks for
# requests every few seconds.
_STOP_MARGIN_SECONDS = 30


def list_(
    address: options.Address = None,
    backend: options.BackendName = None,
    kube: options.Kube = None,
    as_json: options.AsJson = False,
) -> None:
    """List jobs, oldest first."""
    from kdscale.submit import open_backend

    jobs = open_backend(place_of(address, backend, kube)).list()
    if as_json:
        print_json({"jobs": [job.facts() for job in jobs]})
        return
    for job in jobs:
        typer.echo(f"{job.id}\t{job.status}\t{job.metadata.get('job_name', '')}")


def status(
    job: str, address: str | None, backend: str | None, kube: str | None, as_json: bool
) -> None:
    """Print a job's status, and exit with the code for it."""
    at, job = reach(job, address, backend, kube)
    conclude(at, at.details(job), as_json, sys.stdout)


def logs(
    job: options.JobId,
    address: options.Address = None,
    backend: options.BackendName = None,
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
    from kdscale.submit import offset_since

    at, job = reach(job, address, backend, kube)
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
    backend: options.BackendName = None,
    kube: options.Kube = None,
    timeout: options.Timeout = None,
    as_json: options.AsJson = False,
) -> None:
    """Wait until a job has ended, without its log, and exit with the job's status."""
    at, job = reach(job, address, backend, kube)
    conclude(at, watch(at, job, None, timeout), as_json, sys.stderr)


def stop(
    job: options.JobId,
    address: options.Address = None,
    backend: options.BackendName = None,
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
    from kdscale.submit import describe, follow
    from kdscale.submit.job import WaitTimeoutError

    at, job = reach(job, address, backend, kube)
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


def place_of(address: str | None, backend: str | None, kube: str | None) -> "Place":
    """Return the place that options name; the environment's or this machine's Ray without any."""
    from kdscale.submit import Place

    return Place(backend or ("ray" if kube is None else "kuberay"), address, kube)


def reach(
    thing: str, address: str | None, backend: str | None, kube: str | None
) -> tuple["Backend", str]:
    """Return the back end of a job, and its id.

    `thing` is the id, or the output or config of a run that was submitted from here. Options win
    over the record of the submission.
    """
    from kdscale.submit import open_backend

    found = recorded(thing)
    if found is None:
        _check_id(thing)
    is_given = any(option is not None for option in (address, backend, kube))
    place = place_of(address, backend, kube) if is_given or found is None else found.place
    return open_backend(place, say=say), thing if found is None else found.job


def recorded(thing: str) -> "Record | None":
    """Return the record of the job `thing`, or of the newest one of the run `thing`."""
    from kdscale.submit import recall, recall_run

    if not is_run(thing):
        return recall(thing)
    if "://" in thing:
        return recall_run(thing)
    if is_config(thing):
        from kdscale.config import load_config
        from kdscale.config.places import resolve_places

        return recall_run(resolve_places(load_config(thing))[0].output)
    return recall_run(str(Path(thing).expanduser().absolute()))


def is_run(thing: str) -> bool:
    """Return whether `thing` is a run, not a job: an id has no slash and is no folder here."""
    return "/" in thing or is_config(thing) or Path(thing).is_dir()


def is_config(thing: str) -> bool:
    """Return whether `thing` is a run's config, and not its output."""
    is_yaml = thing.endswith((".yaml", ".yml")) and "://" not in thing
    return is_yaml and not Path(thing).is_dir()


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


def next_commands(job: str) -> None:
    """Print the commands for the job, which is recorded here."""
    for command in (f"status {job}", f"logs -f {job}", f"stop {job}"):
        say(f"  kdscale {command}")


def say(text: str) -> None:
    """Print on stderr; stdout stays for scripts."""
    typer.echo(text, err=True)


def print_json(content: dict[str, Any]) -> None:
    """Print the one JSON object of a command."""
    typer.echo(json.dumps(content))


def _check_id(job: str) -> None:
    """Raise KdscaleError for a run's output or config that was not submitted from here."""
    if is_run(job):
        raise KdscaleError(
            f"{job!r} is a path or a URL, not a job's id, and no job of such a run was submitted "
            "from this machine.",
            "Give the id that `kdscale submit` printed (`kdscale list` shows those there are). "
            "`kdscale status` says of any run which job drives it.",
        )


def _detach(backend: "Backend", job: str) -> None:
    from kdscale.submit import recall

    # Of a job that was submitted elsewhere nothing is recorded here.
    options = backend.place.options if recall(job) is None else ""
    try:
        # Inside the block: a second Ctrl-C may come before the sleep.
        say(f"\nDetached; the job continues. Ctrl-C again within {AGAIN_SECONDS:.0f} s stops it.")
        time.sleep(AGAIN_SECONDS)
    except KeyboardInterrupt:
        backend.stop(job)
        say(f"Asked the job to stop. See it end: kdscale wait {job}{options}")
    else:
        say(f"Follow it again: kdscale logs -f {job}{options}")
