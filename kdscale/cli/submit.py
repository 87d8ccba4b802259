"""`kdscale submit`: a config becomes a job on a cluster or on this machine.

stdout carries the job's id alone, or one JSON object; everything else goes to stderr.
"""

import sys
import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from kdscale.cli import options
from kdscale.cli.graph import send_graph
from kdscale.cli.jobs import conclude, next_commands, print_json, say, watch
from kdscale.run.stage_names import STAGES, chosen_stages

if TYPE_CHECKING:
    from kdscale.submit import Backend, JobPlan

SubmissionId = Annotated[
    str | None,
    typer.Option(
        "--submission-id",
        "--name",
        metavar="ID",
        help="Id of the job, which makes a repeated submission harmless. Default: the run's name "
        "and a tail.",
    ),
]
Follow = Annotated[
    bool,
    typer.Option("--follow/--detach", help="Follow the log to the job's end; its verdict is ours."),
]
DryRun = Annotated[
    bool,
    typer.Option(
        "--dry-run", help="Check the run and print what would be submitted; start nothing."
    ),
]
Environment = Annotated[
    list[str] | None,
    typer.Option(
        "--env",
        metavar="K=V",
        help="Variable of the job; may be repeated. Everyone with access to the dashboard sees it.",
    ),
]
EnvironmentFile = Annotated[
    Path | None,
    typer.Option("--env-file", metavar="FILE", help="File of such variables, K=V a line."),
]
Secret = Annotated[
    list[str] | None,
    typer.Option(
        "--secret",
        metavar="NAME",
        help="Variable of this shell that the job gets too, and nobody sees; may be repeated.",
    ),
]
AllowVisible = Annotated[
    bool,
    typer.Option("--allow-visible-secrets", help="Let --env take what looks like a secret."),
]
Exclude = Annotated[
    list[str] | None,
    typer.Option(
        "--exclude", metavar="PATTERN", help="Files not to upload, by name or path; repeatable."
    ),
]
UploadTo = Annotated[
    str | None,
    typer.Option(
        "--upload-to",
        metavar="URL",
        help="Send the code through this object store (s3://bucket/prefix) instead of Ray.",
    ),
]
Student = Annotated[
    list[str] | None,
    typer.Option(
        "--student",
        metavar="FILE",
        help="A student's own fields (distill, ...); repeated, one capture serves them all, "
        "each being distilled and evaluated by jobs of its own.",
    ),
]
Grace = Annotated[
    int,
    typer.Option(
        "--grace",
        parser=options.duration,
        metavar="TIME",
        help="How long the job may take to write its checkpoint when it is stopped.",
    ),
]
AllowSkew = Annotated[
    bool,
    typer.Option("--allow-version-skew", help="Submit to a cluster with another Ray or Python."),
]


def submit(
    config: options.Config,
    overrides: options.Overrides = None,
    backend: options.BackendName = "ray",
    address: options.Address = None,
    kube: options.Kube = None,
    submission_id: SubmissionId = None,
    follow: Follow = False,
    timeout: options.Timeout = None,
    dry_run: DryRun = False,
    as_json: options.AsJson = False,
    environment: Environment = None,
    env_file: EnvironmentFile = None,
    secret: Secret = None,
    allow_visible: AllowVisible = False,
    exclude: Exclude = None,
    upload_to: UploadTo = None,
    grace: Grace = "10m",  # type: ignore[assignment]  # typer parses a default like any text
    allow_skew: AllowSkew = False,
    only: options.Only = None,
    start: options.Start = None,
    until: options.Until = None,
    student: Student = None,
) -> None:
    """Run a config as a job of a cluster, or of this machine. Prints the job's id."""
    options.check_stages(only, start, until)
    options.check_timeout(timeout, follow)
    from kdscale import submit as room
    from kdscale.config import load_config

    at = room.open_backend(
        backend, address, kube, upload_to=upload_to, allow_skew=allow_skew, say=say
    )
    shared: dict[str, Any] = {
        "environment": room.read_environment(environment or (), env_file, allow_visible),
        "secret_names": secret or (),
        "grace_seconds": grace,
    }
    if student:
        if only or start or until or exclude or backend == "kuberay":
            raise typer.BadParameter("--student goes with neither stages, --exclude nor kuberay.")
        graph = room.plan_graph(
            config, overrides or (), student, graph_id=submission_id, upload_to=upload_to, **shared
        )
        _preflight({node.config_text for node in graph.nodes}, backend)
        render, send = graph.summary, partial(send_graph, at, backend, graph)
    else:
        plan = room.plan_job(
            load_config(config, overrides or ()),
            only=only,
            start=start,
            until=until,
            submission_id=submission_id,
            excludes=exclude or (),
            **shared,
        )
        render, send = partial(at.render, plan), partial(_send, at, plan)
        for note in plan.notes:
            say(f"note: {note}")
        _preflight({plan.config_text}, backend, chosen_stages(only, start, until))
    if dry_run:
        _print_plan(render(), as_json)
        return
    submitted, created = send()
    _conclude(at, submitted, created, as_json, follow, timeout)


def _preflight(configs: set[str], backend: str, stages: Sequence[str] = STAGES) -> None:
    """Look at all that `stages` of the configs will need, as far as it is to be seen from here."""
    from kdscale.config import parse_config
    from kdscale.preflight import PreflightOptions, preflight

    notes: dict[str, None] = {}
    for text in sorted(configs):
        preflight_options = PreflightOptions(runs_elsewhere=backend != "local")
        notes |= dict.fromkeys(preflight(parse_config(text), stages, preflight_options).notes)
    for note in notes:
        say(f"note: {note}")


def _conclude(
    backend: "Backend",
    plan: "JobPlan",
    created: bool,
    as_json: bool,
    follow: bool,
    timeout: int | None,
) -> None:
    """Print the id, what can be done with the job, and with `follow` its log and its verdict."""
    job = plan.submission_id
    if not as_json:
        typer.echo(job)
    next_commands(backend, job)
    if follow:
        # The id, or the object, has stdout to itself.
        conclude(
            backend, watch(backend, job, sys.stderr, timeout), as_json, sys.stderr, created=created
        )
    if as_json:
        print_json({"id": job, "created": created, "output": plan.output})


def _send(backend: "Backend", plan: "JobPlan") -> tuple["JobPlan", bool]:
    """Submit the plan. Returns it, and False where an earlier submission of it is there already."""
    from kdscale import submit as room

    with tempfile.TemporaryDirectory(prefix="kdscale-") as folder:
        staged = room.stage(room.checkout(), plan.config_text, Path(folder), plan.excludes)
        found = room.submit_once(backend, plan, staged)
    if found is None:
        return plan, True
    say(f"The job is there already, from an earlier submission. {room.describe(found)}")
    if found.status in ("FAILED", "STOPPED"):
        say("Submit under another id to go on where it ended.")
    return plan, False


def _print_plan(content: dict[str, Any], as_json: bool) -> None:
    """What a dry run shows, as YAML or JSON."""
    import yaml

    if as_json:
        print_json(content)
    else:
        typer.echo(yaml.safe_dump(content, sort_keys=False), nl=False)
