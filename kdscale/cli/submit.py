"""`kdscale submit`: run a config as a job of a cluster.

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
from kdscale.cli.jobs import conclude, next_commands, place_of, print_json, say, watch
from kdscale.errors import ExitCode
from kdscale.run.stage_names import STAGES, chosen_stages

if TYPE_CHECKING:
    from kdscale.submit import Backend, Job, JobPlan

SubmissionId = Annotated[
    str | None,
    typer.Option(
        "--submission-id",
        "--name",
        metavar="ID",
        help="Id of the job, which makes a repeated submission harmless. Default: the run's name "
        "with a random ending.",
    ),
]
Follow = Annotated[
    bool,
    typer.Option("--follow/--detach", help="Stream the log and exit with the job's status."),
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
        help="Variable of this shell that the job gets as a secret; may be repeated.",
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
        "and each is distilled and evaluated by separate jobs.",
    ),
]
Grace = Annotated[
    int,
    typer.Option(
        "--grace",
        parser=options.duration,
        metavar="TIME",
        help="Time for the job to write its checkpoint when it is stopped: 90s, 10m.",
    ),
]
AllowSkew = Annotated[
    bool,
    typer.Option("--allow-version-skew", help="Submit to a cluster with another Ray or Python."),
]


def submit(
    config: options.Config,
    overrides: options.Overrides = None,
    backend: options.BackendName = None,
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
    """Run a config as a job of a cluster. Prints the job's id.

    Without --address: the Ray cluster of this machine, which `ray start --head` starts.
    """
    options.check_stages(only, start, until)
    options.check_timeout(timeout, follow)
    from kdscale import submit as api
    from kdscale.config import load_config

    place = place_of(address, backend, kube)
    at = api.open_backend(place, upload_to=upload_to, allow_skew=allow_skew, say=say)
    visible = api.read_environment(environment or (), env_file, allow_visible)
    shared: dict[str, Any] = {"environment": visible, "secret_names": secret or ()}
    shared["grace_seconds"] = grace
    if student:
        if only or start or until or exclude or place.backend == "kuberay":
            raise typer.BadParameter("--student goes with neither stages, --exclude nor kuberay.")
        graph = api.plan_graph(
            config, overrides or (), student, graph_id=submission_id, upload_to=upload_to, **shared
        )
        _preflight({node.config_text for node in graph.nodes})
        render, send = graph.summary, partial(api.submit_graph, at, graph, say)
        runs = graph.outputs
    else:
        plan = api.plan_job(
            load_config(config, overrides or ()),
            only=only,
            start=start,
            until=until,
            submission_id=submission_id,
            excludes=exclude or (),
            **shared,
        )
        for note in plan.notes:
            say(f"note: {note}")
        _preflight({plan.config_text}, chosen_stages(only, start, until))
        render, send = partial(at.render, plan), partial(_send, at, plan)
        runs = {}
    if dry_run:
        _print_plan(render(), as_json)
        return
    submitted, found = send()
    _record(at, runs | {submitted.submission_id: submitted.output})
    if found is not None:
        _report_earlier(found)
    _conclude(at, submitted, found is None, as_json, follow, timeout)


def run_graph(graph: Annotated[Path, typer.Argument(metavar="GRAPH")]) -> None:
    """Run the jobs of a submitted graph, on the cluster."""
    from kdscale.submit import Place, open_backend
    from kdscale.submit.graph import GraphRun, load_graph

    planned = load_graph(graph.read_text(encoding="utf-8"))
    at = open_backend(Place(), upload_to=planned.upload_to, say=print)
    try:
        succeeded = GraphRun(at, planned, print).run()
    except KeyboardInterrupt as error:
        raise typer.Exit(ExitCode.STOPPED) from error
    raise typer.Exit(ExitCode.OK if succeeded else ExitCode.FAILED)


def _preflight(configs: set[str], stages: Sequence[str] = STAGES) -> None:
    """Check all that `stages` of the configs need, as far as it can be seen from here."""
    from kdscale.config import parse_config
    from kdscale.preflight import PreflightOptions, preflight

    notes: dict[str, None] = {}
    for text in sorted(configs):
        elsewhere = PreflightOptions(runs_elsewhere=True)
        notes |= dict.fromkeys(preflight(parse_config(text), stages, elsewhere).notes)
    for note in notes:
        say(f"note: {note}")


def _record(backend: "Backend", outputs: dict[str, str]) -> None:
    """Record where the jobs, each with its run's output, went; the last one is the newest."""
    from kdscale.submit import Record, remember

    try:
        for job, output in outputs.items():
            remember(Record(job, backend.place, output))
    except OSError as error:
        say(f"note: where the job went is not recorded, give it to other commands again: {error}")


def _report_earlier(job: "Job") -> None:
    """Tell that an earlier submission made the job."""
    from kdscale.submit import describe

    say(f"The job is there already, from an earlier submission. {describe(job)}")
    if job.status in ("FAILED", "STOPPED"):
        say("Submit under another id to continue where it ended.")


def _conclude(
    backend: "Backend",
    plan: "JobPlan",
    created: bool,
    as_json: bool,
    follow: bool,
    timeout: int | None,
) -> None:
    """Print the id and further commands; with `follow`, the log, and exit with the job's status."""
    job = plan.submission_id
    if not as_json:
        typer.echo(job)
    next_commands(job)
    if follow:
        # The id, or the object, has stdout to itself.
        conclude(
            backend, watch(backend, job, sys.stderr, timeout), as_json, sys.stderr, created=created
        )
    if as_json:
        print_json({"id": job, "created": created, "output": plan.output})


def _send(backend: "Backend", plan: "JobPlan") -> tuple["JobPlan", "Job | None"]:
    """Submit the plan. Returns it, and the job of an earlier submission of it, if there is one."""
    from kdscale import submit as api

    with tempfile.TemporaryDirectory(prefix="kdscale-") as folder:
        staged = api.stage(api.code_root(), plan.config_text, Path(folder), plan.excludes)
        return plan, api.submit_once(backend, plan, staged)


def _print_plan(content: dict[str, Any], as_json: bool) -> None:
    """Print the result of a dry run, as YAML or JSON."""
    import yaml

    if as_json:
        print_json(content)
    else:
        typer.echo(yaml.safe_dump(content, sort_keys=False), nl=False)
