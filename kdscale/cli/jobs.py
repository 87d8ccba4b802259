"""Jobs on a Ray cluster: submit, list, status, logs, wait, stop.

stdout carries what a script wants (an id, a log), stderr what a person wants. Exit codes come from
a job's final status: see kdscale/submit/verdict.py.
"""

import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from kdscale.cli import options

if TYPE_CHECKING:
    from kdscale.submit import JobPlan

SubmissionId = Annotated[
    str | None,
    typer.Option(
        "--submission-id",
        "--name",
        metavar="ID",
        help="Id of the job. A second one with it is refused. Default: the run's name and a tail.",
    ),
]
Follow = Annotated[
    bool,
    typer.Option("--follow/--detach", help="Follow the log to the job's end; its verdict is ours."),
]
DryRun = Annotated[
    bool, typer.Option("--dry-run", help="Print what would be submitted; contact nothing.")
]
Environment = Annotated[
    list[str] | None,
    typer.Option(
        "--env",
        metavar="K=V",
        help="Environment variable of the job; may be repeated. No secrets: everyone with access "
        "to the dashboard sees them. Set those on the nodes.",
    ),
]


def submit(
    config: options.Config,
    overrides: options.Overrides = None,
    address: options.Address = None,
    submission_id: SubmissionId = None,
    follow: Follow = False,
    dry_run: DryRun = False,
    environment: Environment = None,
    only: options.Only = None,
    start: options.Start = None,
) -> None:
    """Run a config on a cluster, as a Ray job. Prints the job's id."""
    options.check_stages(only, start)
    from kdscale import submit as room
    from kdscale.config import load_config

    plan = room.plan_job(
        load_config(config, overrides or ()),
        only=only,
        start=start,
        submission_id=submission_id,
        environment=environment or (),
    )
    for note in plan.notes:
        _say(f"note: {note}")
    root = room.checkout()
    if dry_run:
        _print_plan(plan, root, environment or [])
        return
    client = room.connect(address)
    with tempfile.TemporaryDirectory(prefix="kdscale-") as folder:
        staged = room.stage(root, plan.config_text, Path(folder))
        job = room.submit_job(client, plan, staged)
    typer.echo(job)
    suffix = "" if address is None else f" --address {address}"
    for command in (f"status {job}", f"logs -f {job}", f"stop {job}"):
        _say(f"  kdscale {command}{suffix}")
    if follow:
        # The id has stdout to itself.
        _follow(client, job, sys.stderr)


def list_(address: options.Address = None) -> None:
    """List the jobs that the cluster remembers, oldest first."""
    from kdscale.submit import connect, list_jobs

    for job in list_jobs(connect(address)):
        name = (job.metadata or {}).get("job_name", "")
        typer.echo(f"{job.submission_id}\t{job.status.value}\t{name}")


def status(job: options.JobId, address: options.Address = None) -> None:
    """Print a job's status; the exit code tells how a job that has ended went."""
    from kdscale.submit import connect, describe, exit_code, job_details

    details = job_details(connect(address), job)
    typer.echo(describe(details))
    raise typer.Exit(exit_code(details))


def logs(
    job: options.JobId,
    address: options.Address = None,
    follow: Annotated[
        bool, typer.Option("-f", "--follow", help="Follow to the job's end.")
    ] = False,
) -> None:
    """Print a job's log so far, or with -f until it ends, and then exit with its verdict."""
    from kdscale.submit import connect, job_log

    client = connect(address)
    if follow:
        _follow(client, job, sys.stdout)
    typer.echo(job_log(client, job), nl=False)


def wait(job: options.JobId, address: options.Address = None) -> None:
    """Wait until a job has ended, without its log, and exit with its verdict."""
    from kdscale.submit import connect

    _follow(connect(address), job, None)


def stop(job: options.JobId, address: options.Address = None) -> None:
    """Stop a job and wait until it has ended. Its workers get a minute to wind down."""
    from kdscale.submit import connect, describe, follow, stop_job

    client = connect(address)
    if not stop_job(client, job):
        _say("The job had ended before.")
    _say(describe(follow(client, job, lambda _: None)))


def _follow(client: Any, job: str, out: Any) -> None:
    """Follow the job with its log on `out` (a text stream, or None), and exit with its verdict."""
    from kdscale.submit import describe, exit_code, follow
    from kdscale.submit.verdict import DETACHED

    def write(text: str) -> None:
        if out is not None:
            out.write(text)
            out.flush()

    try:
        details = follow(client, job, write)
    except KeyboardInterrupt as error:
        _say(f"\nDetached; the job goes on. Follow it again: kdscale logs -f {job}")
        raise typer.Exit(DETACHED) from error
    _say(describe(details))
    raise typer.Exit(exit_code(details))


def _print_plan(plan: "JobPlan", root: Path, given: list[str]) -> None:
    import yaml

    from kdscale.submit import EXCLUDES

    summary = plan.summary([text.partition("=")[0] for text in given])
    summary["runtime_env"]["working_dir"] = str(root)
    summary["excludes"] = list(EXCLUDES)
    ignore = root / ".rayignore"
    if ignore.is_file():
        lines = ignore.read_text(encoding="utf-8").splitlines()
        summary["excludes"] += [line for line in lines if line and not line.startswith("#")]
    summary["config"] = yaml.safe_load(plan.config_text)
    typer.echo(yaml.safe_dump(summary, sort_keys=False), nl=False)


def _say(text: str) -> None:
    """Tell the person; stdout stays for scripts."""
    typer.echo(text, err=True)
