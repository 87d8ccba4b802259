"""A run through its stages: which are made, in which order, and what watches over them.

    prepare -> teacher -> cache -> distill -> evaluate -> report

A stage's output is named, or marked, by the fingerprint of its config and of its inputs'
fingerprints, and is published last. Running again skips what is complete and goes on with what is
not; a finished model made from another config is never overwritten unasked.
"""

from contextlib import ExitStack
from dataclasses import dataclass

from kdscale.config import RunConfig, dump_config
from kdscale.distributed.rank import GracefulStopError
from kdscale.errors import KdscaleError
from kdscale.models.hf_folder import read_marker
from kdscale.preflight import Findings, preflight
from kdscale.preflight.base import differing_fields
from kdscale.preflight.caches import check_caches, other_caches
from kdscale.preflight.tokenizer import of_prepared
from kdscale.run.artifacts import RunArtifacts, resolve_paths
from kdscale.run.finished_run import CONFIG_KEY
from kdscale.run.lock import run_lease
from kdscale.run.making import STAGE_OF, Stage
from kdscale.run.progress_file import Heartbeat
from kdscale.run.record import RunRecord
from kdscale.run.stage_names import STAGES, chosen_stages
from kdscale.run.stop import StopRequests
from kdscale.store import HeldLease, explained
from kdscale.workers.group import WorkerGroups
from kdscale.workers.progress import stage_progress
from kdscale.workers.ray_session import ray_session

# What a run with a base takes from there.
_FROM_BASE = ("prepare", "teacher", "cache")


@explained()
def run_pipeline(
    config: RunConfig,
    only: str | None = None,
    start: str | None = None,
    overwrite: bool = False,
    wait_for_lease: float | None = None,
    until: str | None = None,
) -> str:
    """Run the stages that are not complete; returns the report's Markdown summary, if there is one.

    `only`, `start` and `until` name a stage: stages left out must be complete, if they are needed.
    Named alone, `evaluate` and `report` run again even if they are complete. `overwrite` allows
    replacing models that another config made in the same output. `wait_for_lease`: see run_lease.
    Raises KdscaleError for bad input before a worker starts, HeldError where another driver is at
    this run, StoppedError where the run was asked to stop.
    """
    run = RunArtifacts(resolve_paths(config))
    run.output.check()
    chosen = _choose(only, start, until)
    for note in check_run(config, only, start, overwrite, until).notes:
        print(f"note: {note}", flush=True)
    prepared, others = run.prepare_fingerprint, run.compared
    with ExitStack() as stack:
        lease = stack.enter_context(run_lease(run.output, wait=wait_for_lease))
        requests = stack.enter_context(StopRequests(run.output))
        heartbeat = stack.enter_context(Heartbeat(run.output, check=lease.check))
        run.fence = lease.fence()
        run.output.put(CONFIG_KEY, dump_config(run.config).encode())
        record = RunRecord(run.output, run.config.name, run.fingerprint, lease.check)
        print(f"run {run.config.name} on data {prepared} -> {run.output}", flush=True)
        if others:
            print(f"evaluated too: {', '.join(others)}", flush=True)
        supervision = Supervision(lease, requests, heartbeat)
        ray_started, groups = False, WorkerGroups()
        for stage in chosen:
            requests.check()
            again = only in ("evaluate", "report")
            if not again and stage.is_complete(run, record):
                print(f"{stage.name}: complete, skipped", flush=True)
                continue
            _refuse_incomplete_base(run, stage)
            if stage.name in ("teacher", "cache", "distill") and other_caches(run):
                # What a trained tokenizer, or teacher, has become is known only now.
                check_caches(run, of_prepared(run.prepared))
            if stage.needs_ray and not ray_started:
                stack.enter_context(ray_session())
                stack.enter_context(groups)
                ray_started = True
            _run_stage(stage, run, record, supervision, groups)
    report = run.output.child("report")
    return report.get("summary.md").decode() if report.exists("summary.md") else ""


def check_run(
    config: RunConfig,
    only: str | None = None,
    start: str | None = None,
    overwrite: bool = False,
    until: str | None = None,
) -> Findings:
    """Look at all that the stages of `run_pipeline` will need, and start none of them. Raises
    KdscaleError for what one of them would refuse."""
    run = RunArtifacts(resolve_paths(config))
    chosen = _choose(only, start, until)
    # Look at the corpus and at other models, so that a missing one ends the run here.
    _ = run.prepare_fingerprint, run.compared
    if not overwrite:
        _refuse_foreign_models(run, {stage.name for stage in chosen})
    pending = chosen if only in ("evaluate", "report") else _pending(run, chosen)
    if pending:
        _refuse_incomplete_base(run, pending[0])
    return preflight(config, [stage.name for stage in pending])


def _pending(run: RunArtifacts, chosen: list[Stage]) -> list[Stage]:
    """The stages from the first on that is not complete."""
    record = RunRecord(run.output, run.config.name, run.fingerprint)
    for number, stage in enumerate(chosen):
        try:
            complete = stage.is_complete(run, record)
        except KdscaleError:
            complete = False  # it needs one that is not complete
        if not complete:
            return chosen[number:]
    return []


def _refuse_incomplete_base(run: RunArtifacts, stage: Stage) -> None:
    """A stage that is not complete, of which the base has the output."""
    if run.config.base is None or stage.name not in _FROM_BASE:
        return
    differing = differing_fields(run)
    lines = "".join(f"\n  {line}" for line in differing)
    raise KdscaleError(
        f"The run {run.source}, this one's base, has not completed its stage {stage.name!r} for "
        f"this config.{lines}",
        f"Run that one first, with --until {_FROM_BASE[-1]}; data, teacher and cache of the two "
        "configs have to be the same.",
    )


@dataclass(frozen=True)
class Supervision:
    """What watches over a run from its first write to its end."""

    lease: HeldLease
    requests: StopRequests
    heartbeat: Heartbeat

    def asked_to_stop(self) -> bool:
        """Whether the present stage is to wind down; raises where the run must end now."""
        self.lease.check_known()
        return self.requests.asked()


def _run_stage(
    stage: Stage, run: RunArtifacts, record: RunRecord, watch: Supervision, groups: WorkerGroups
) -> None:
    print(f"{stage.name}: started", flush=True)
    fingerprint = stage.fingerprint(run)
    with ExitStack() as stack:
        stack.enter_context(record.running(stage.name, fingerprint))
        drawn = stage_progress(stage.name, watch.asked_to_stop, run=run.config.name)
        progress = stack.enter_context(drawn)
        watch.heartbeat.begin(stage.name, fingerprint, progress)
        if stage.supports_graceful_stop:
            stack.enter_context(watch.requests.obeyed())
        try:
            lines = stage.make(run, record, progress, groups)
        except GracefulStopError as error:
            raise watch.requests.error() from error
    for line in lines:
        print(f"{stage.name}: {line}", flush=True)
    print(f"{stage.name}: done in {record.seconds()[stage.name]:.1f} s", flush=True)


def _choose(only: str | None, start: str | None, until: str | None) -> list[Stage]:
    for name in (only, start, until):
        if name is not None and name not in STAGES:
            raise KdscaleError(
                f"There is no stage {name!r}.", f"Choose one of {', '.join(STAGES)}."
            )
    return [STAGE_OF[name] for name in chosen_stages(only, start, until)]


def _refuse_foreign_models(run: RunArtifacts, stages: set[str]) -> None:
    """A finished model in the output that one of `stages` would replace."""
    found = read_marker(run.model_store("teacher"))
    replaced = "teacher" in stages and run.config.base is None
    if replaced and found is not None and found.fingerprint != run.teacher_fingerprint:
        _refuse(run, "teacher")
    if "distill" not in stages or found is None or not run.prepared_store.exists("manifest.json"):
        return
    for name in run.student_names:
        model = read_marker(run.output.child(name))
        if model is not None and model.fingerprint != run.student_fingerprint(name):
            _refuse(run, name)


def _refuse(run: RunArtifacts, name: str) -> None:
    raise KdscaleError(
        f"{run.output}/{name} holds a {name} that another config made.",
        "Give this run another `output`, or allow replacing it with --overwrite.",
    )
