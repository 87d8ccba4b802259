"""The stages of a run: what each needs and makes, and what can be skipped.

    prepare -> teacher -> cache -> distill -> evaluate -> report

A stage's output is named, or marked, by the fingerprint of its config and of its inputs'
fingerprints, and is published last. Running again skips what is complete and goes on with what is
not; a finished model made from another config is never overwritten unasked.
"""

import json
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any

from kdscale.cache.commit.manifest import load_manifest
from kdscale.cache.maintain.inspect import inspect
from kdscale.cache.read.reader import CacheSource
from kdscale.cache_stage import check_reused, is_complete, own_store, plan_capture, readable_caches
from kdscale.committing import committing
from kdscale.config import RunConfig, dump_config
from kdscale.data.manifest import summarise
from kdscale.data.prepare import prepare
from kdscale.errors import KdscaleError
from kdscale.evaluate.others import refer_to_others
from kdscale.evaluate.results import (
    RESULTS_KEY,
    HarnessTask,
    build_results,
    read_results,
    write_results,
)
from kdscale.evaluate.worker import MEASURED_KEY, EvaluateJob, evaluate
from kdscale.heartbeat import Heartbeat
from kdscale.lease import run_lease
from kdscale.models.folder import read_marker, refer
from kdscale.progress import StageProgress, stage_progress
from kdscale.ray_session import ray_session
from kdscale.record import RunRecord
from kdscale.report import write_model_card, write_report
from kdscale.report.load import load_run
from kdscale.report.panels import panels, summary
from kdscale.run import Run, resolve_paths
from kdscale.stages import STAGES
from kdscale.stop import StopRequests
from kdscale.store import HeldLease
from kdscale.student.worker import distill
from kdscale.teacher.capture import capture
from kdscale.teacher.existing import check_teacher, own_tokenizer
from kdscale.teacher.train import train_teacher
from kdscale.tracking import open_gallery
from kdscale.train.session import Session
from kdscale.workers import LeavingError, WorkerGroups

# What a run with a base takes from there.
_FROM_BASE = ("prepare", "teacher", "cache")


@dataclass(frozen=True)
class Stage:
    """One stage; `make` returns lines for the terminal and runs only if `is_complete` is false."""

    name: str
    fingerprint: Callable[[Run], str]
    is_complete: Callable[[Run, RunRecord], bool]
    make: Callable[[Run, RunRecord, StageProgress, WorkerGroups], list[str]]
    needs_ray: bool = True
    winds_down: bool = True
    """Whether it has something to save when it is asked to stop."""


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
    run = Run(resolve_paths(config))
    run.output.check()
    chosen = _choose(only, start, until)
    # Look at the corpus and at other models, so that a missing one ends the run here.
    prepared, others = run.prepare_fingerprint, run.compared
    if not overwrite:
        _refuse_foreign_models(run, {stage.name for stage in chosen})
    with ExitStack() as stack:
        lease = stack.enter_context(run_lease(run.output, wait=wait_for_lease))
        requests = stack.enter_context(StopRequests(run.output))
        heartbeat = stack.enter_context(Heartbeat(run.output, check=lease.check))
        run.fence = lease.fence()
        run.output.put("config.resolved.yaml", dump_config(run.config).encode())
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
            if run.config.base is not None and stage.name in _FROM_BASE:
                raise KdscaleError(
                    f"The run {run.source}, this one's base, has not completed its stage "
                    f"{stage.name!r} for this config.",
                    f"Run that one first, with --until {_FROM_BASE[-1]}; data, teacher and cache "
                    "of the two configs have to be the same.",
                )
            if stage.name != STAGES[0]:
                check_reused(run)
            if stage.needs_ray and not ray_started:
                stack.enter_context(ray_session())
                stack.enter_context(groups)
                ray_started = True
            _run_stage(stage, run, record, supervision, groups)
    report = run.output.child("report")
    return report.get("summary.md").decode() if report.exists("summary.md") else ""


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
    stage: Stage, run: Run, record: RunRecord, watch: Supervision, groups: WorkerGroups
) -> None:
    print(f"{stage.name}: started", flush=True)
    fingerprint = stage.fingerprint(run)
    with ExitStack() as stack:
        stack.enter_context(record.running(stage.name, fingerprint))
        drawn = stage_progress(stage.name, watch.asked_to_stop, run=run.config.name)
        progress = stack.enter_context(drawn)
        watch.heartbeat.begin(stage.name, fingerprint, progress)
        if stage.winds_down:
            stack.enter_context(watch.requests.obeyed())
        try:
            lines = stage.make(run, record, progress, groups)
        except LeavingError as error:
            raise watch.requests.error() from error
    for line in lines:
        print(f"{stage.name}: {line}", flush=True)
    print(f"{stage.name}: done in {record.seconds()[stage.name]:.1f} s", flush=True)


def _choose(only: str | None, start: str | None, until: str | None) -> list["Stage"]:
    for name in (only, start, until):
        if name is not None and name not in STAGES:
            raise KdscaleError(
                f"There is no stage {name!r}.", f"Choose one of {', '.join(STAGES)}."
            )
    if only is not None:
        return [_STAGES[only]]
    first = 0 if start is None else STAGES.index(start)
    last = len(STAGES) if until is None else STAGES.index(until) + 1
    return [_STAGES[name] for name in STAGES[first:last]]


def _refuse_foreign_models(run: Run, stages: set[str]) -> None:
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


def _refuse(run: Run, name: str) -> None:
    raise KdscaleError(
        f"{run.output}/{name} holds a {name} that another config made.",
        "Give this run another `output`, or allow replacing it with --overwrite.",
    )


# prepare


def _prepare(
    run: Run, record: RunRecord, progress: StageProgress, groups: WorkerGroups
) -> list[str]:
    config = run.config
    with own_tokenizer(config) as tokenizer:
        manifest = prepare(
            config.data,
            task=config.task,
            store=run.prepared_store,
            teacher_tokenizer=tokenizer,
            progress=progress.update,
            identity=run.prepare_fingerprint,
        )
    return [f"{what}: {numbers}" for what, numbers in summarise(manifest)]


# teacher


def _teacher(
    run: Run, record: RunRecord, progress: StageProgress, groups: WorkerGroups
) -> list[str]:
    config = run.config
    store = run.output.child("teacher")
    if config.teacher.training is None:
        assert config.teacher.load is not None
        check_teacher(config, run.prepared)
        refer(store, config.teacher.load, config.teacher.revision, run.teacher_fingerprint)
        return [f"uses {config.teacher.load}"]
    session = Session(
        name="teacher",
        fingerprint=run.teacher_fingerprint,
        config=config,
        training=config.teacher.training,
        output=run.output,
        fence=run.fence,
    )
    job = {"session": session, "prepared": run.prepared_store}
    groups.run(train_teacher, job, config.teacher.workers, progress)
    return [f"{run.teacher().parameters:,} parameters"]


# cache


def _cache(run: Run, record: RunRecord, progress: StageProgress, groups: WorkerGroups) -> list[str]:
    config = run.config
    if config.cache.reuse is not None:
        for store, _ in run.cache_stores:
            load_manifest(store)
        return [f"reuses {', '.join(str(store) for store, _ in run.cache_stores)}"]
    # One probe serves all caches of an output.
    probed = None if config.cache.append_to else run.output
    with committing(own_store(run), probed) as put_if_absent:
        job = plan_capture(run, put_if_absent)
        groups.run(capture, {"capture": job}, config.cache.capture.workers, progress)
    facts = inspect(job.cache)
    return [
        f"{facts['rows']:,} rows, {facts['targets']:,} targets, {facts['bytes']:,} bytes, "
        f"{facts['bytes_per_position']:.1f} bytes a position at rest"
    ]


# distill


def _distill(
    run: Run, record: RunRecord, progress: StageProgress, groups: WorkerGroups
) -> list[str]:
    config = run.config
    sessions = [
        Session(
            name=name,
            fingerprint=run.student_fingerprint(name),
            config=config,
            training=config.distill.training,
            output=run.output,
            fence=run.fence,
        )
        for name in run.student_names
    ]
    job = {
        "sessions": sessions,
        "prepared": run.prepared_store,
        "caches": _pinned_caches(run, record),
        "expected": run.cache_needs,
        "teacher": run.teacher(),
        "tables": run.output.child(f"curriculum/{run.student_fingerprint('student')}"),
    }
    groups.run(distill, job, config.distill.workers, progress)
    return [f"{run.student('student').parameters:,} parameters in the student"]


def _pinned_caches(run: Run, record: RunRecord) -> list[CacheSource]:
    """What the student read from its first step on, whatever was appended to a cache since."""
    caches = readable_caches(run)
    key = run.student_fingerprint("student")
    pinned = record.pinned("cache_segments", key, [cache.segments for cache in caches])
    return [replace(c, segments=n) for c, n in zip(caches, pinned, strict=True)]


# evaluate and report


def _evaluate(
    run: Run, record: RunRecord, progress: StageProgress, groups: WorkerGroups
) -> list[str]:
    config = run.config
    job = EvaluateJob(
        config=config,
        output=run.output,
        prepared=run.prepared_store,
        teacher=run.teacher(),
        models={
            **{name: run.student(name) for name in run.student_names},
            **refer_to_others(config, run.prepared),
        },
    )
    groups.run(evaluate, {"evaluate": job}, config.evaluate.workers, progress)
    measured = json.loads(run.output.get(MEASURED_KEY))
    facts = inspect(run.cache_stores[0][0])
    results = build_results(
        run=config.name,
        output=run.output.url,
        cache={**facts, "bytes_per_token": _bytes_per_target(config, facts)},
        seconds=record.seconds(),
        seed=config.seed,
        config_fingerprint=run.evaluate_fingerprint,
        **measured,
    )
    if scores := _lm_eval_scores(run):
        results["lm_eval"] = scores
    write_results(run.output, results)
    gaps = results["gap_recovered"].items()
    return [f"gap recovered on {d}: {'n/a' if g is None else f'{g:.1%}'}" for d, g in gaps]


def _lm_eval_scores(run: Run) -> dict[str, HarnessTask]:
    """What `kdscale lm-eval` has found before on these very models."""
    try:
        before = read_results(run.output)
    except KdscaleError:
        return {}
    same = before["config_fingerprint"] == run.evaluate_fingerprint
    return before.get("lm_eval", {}) if same else {}


def _bytes_per_target(config: RunConfig, facts: dict[str, Any]) -> float:
    """Bytes at rest: of every token of a row that has one as its target nearly everywhere, else of
    what is classified or masked."""
    if config.task == "causal-lm":
        return float(facts["bytes_per_position"])
    return float(facts["bytes"] / max(1, facts["targets"]))


def _report(
    run: Run, record: RunRecord, progress: StageProgress, groups: WorkerGroups
) -> list[str]:
    # The evaluate stage could not know its own seconds.
    results = read_results(run.output)
    write_results(run.output, {**results, "seconds": record.seconds()})
    write_report(run.output)
    for name in run.student_names:
        write_model_card(run.output, name)
    _show(run)
    return [f"{run.output}/report/index.html"]


def _show(run: Run) -> None:
    """The report's charts and tables in W&B."""
    config, found = run.config, load_run(run.output)
    gallery = open_gallery(config, "report", run.output)
    gallery.summary(summary(found))
    gallery.show(panels(found))
    gallery.finish()


def _model_complete(name: str, run: Run, expected: str) -> bool:
    found = read_marker(run.model_store(name))
    return found is not None and found.fingerprint == expected


_STAGES = {
    stage.name: stage
    for stage in (
        Stage(
            "prepare",
            lambda run: run.prepare_fingerprint,
            lambda run, record: run.prepared_store.exists("manifest.json"),
            _prepare,
            winds_down=False,
        ),
        Stage(
            "teacher",
            lambda run: run.teacher_fingerprint,
            lambda run, record: _model_complete("teacher", run, run.teacher_fingerprint),
            _teacher,
        ),
        Stage(
            "cache",
            lambda run: run.cache_fingerprint,
            lambda run, record: is_complete(run),
            _cache,
        ),
        Stage(
            "distill",
            lambda run: run.student_fingerprint("student"),
            lambda run, record: all(
                _model_complete(name, run, run.student_fingerprint(name))
                for name in run.student_names
            ),
            _distill,
        ),
        Stage(
            "evaluate",
            lambda run: run.evaluate_fingerprint,
            lambda run, record: (
                run.output.exists(RESULTS_KEY)
                and read_results(run.output)["config_fingerprint"] == run.evaluate_fingerprint
            ),
            _evaluate,
        ),
        Stage(
            "report",
            lambda run: run.evaluate_fingerprint,
            lambda run, record: record.fingerprint("report") == run.evaluate_fingerprint,
            _report,
            needs_ray=False,
            winds_down=False,
        ),
    )
}
