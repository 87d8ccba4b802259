"""What each stage of a run is: its fingerprint, when it is complete, and how it is made."""

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from kdscale.cache.commit.manifest import load_manifest
from kdscale.cache.maintain.inspect import inspect
from kdscale.cache.read.reader import CacheSource
from kdscale.config import RunConfig
from kdscale.data.prepare import prepare
from kdscale.data.rows.manifest import summarise
from kdscale.distill.worker import DistillJob
from kdscale.errors import KdscaleError
from kdscale.evaluate.external_models import write_external_references
from kdscale.evaluate.results import (
    RESULTS_KEY,
    HarnessTask,
    build_results,
    read_results,
    write_results,
)
from kdscale.evaluate.worker import MEASURED_KEY, EvaluateJob
from kdscale.models.hf_folder import read_marker, write_reference
from kdscale.report import write_model_card, write_report
from kdscale.report.load import load_report_data
from kdscale.report.panels import panels, summary
from kdscale.run.artifacts import RunArtifacts
from kdscale.run.cache_stage import is_complete, own_store, plan_capture, readable_caches
from kdscale.run.record import RunRecord
from kdscale.teacher.pretrained import check_teacher, own_tokenizer
from kdscale.teacher.train import TeacherJob
from kdscale.tracking.wandb_run import open_wandb_run
from kdscale.train.job import TrainingJob
from kdscale.workers.commit_actor import committing
from kdscale.workers.group import WorkerGroups
from kdscale.workers.progress import StageProgress


@dataclass(frozen=True)
class Stage:
    """One stage; `make` returns lines for the terminal and runs only if `is_complete` is false."""

    name: str
    fingerprint: Callable[[RunArtifacts], str]
    is_complete: Callable[[RunArtifacts, RunRecord], bool]
    make: Callable[[RunArtifacts, RunRecord, StageProgress, WorkerGroups], list[str]]
    needs_ray: bool = True
    supports_graceful_stop: bool = True
    """Whether it has something to save when it is asked to stop."""


# prepare


def _prepare(
    run: RunArtifacts, record: RunRecord, progress: StageProgress, groups: WorkerGroups
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
    run: RunArtifacts, record: RunRecord, progress: StageProgress, groups: WorkerGroups
) -> list[str]:
    config = run.config
    store = run.output.child("teacher")
    if config.teacher.training is None:
        assert config.teacher.load is not None
        check_teacher(config, run.prepared)
        write_reference(
            store, config.teacher.load, config.teacher.revision, run.teacher_fingerprint
        )
        return [f"uses {config.teacher.load}"]
    session = TrainingJob(
        name="teacher",
        fingerprint=run.teacher_fingerprint,
        config=config,
        training=config.teacher.training,
        output=run.output,
        fence=run.fence,
    )
    job = TeacherJob(session, run.prepared_store)
    groups.run(job, config.teacher.workers, progress)
    return [f"{run.teacher().parameters:,} parameters"]


# cache


def _cache(
    run: RunArtifacts, record: RunRecord, progress: StageProgress, groups: WorkerGroups
) -> list[str]:
    config = run.config
    if config.cache.reuse is not None:
        for store, _ in run.cache_stores:
            load_manifest(store)
        return [f"reuses {', '.join(str(store) for store, _ in run.cache_stores)}"]
    # One probe serves all caches of an output.
    probed = None if config.cache.append_to else run.output
    with committing(own_store(run), probed) as put_if_absent:
        job = plan_capture(run, put_if_absent)
        groups.run(job, config.cache.capture.workers, progress)
    facts = inspect(job.cache)
    return [
        f"{facts['rows']:,} rows, {facts['targets']:,} targets, {facts['bytes']:,} bytes, "
        f"{facts['bytes_per_position']:.1f} bytes a position at rest"
    ]


# distill


def _distill(
    run: RunArtifacts, record: RunRecord, progress: StageProgress, groups: WorkerGroups
) -> list[str]:
    config = run.config
    sessions = [
        TrainingJob(
            name=name,
            fingerprint=run.student_fingerprint(name),
            config=config,
            training=config.distill.training,
            output=run.output,
            fence=run.fence,
        )
        for name in run.student_names
    ]
    job = DistillJob(
        sessions=sessions,
        prepared=run.prepared_store,
        caches=_pinned_caches(run, record),
        expected=run.cache_needs,
        teacher=run.teacher(),
        tables=run.output.child(f"curriculum/{run.student_fingerprint('student')}"),
    )
    groups.run(job, config.distill.workers, progress)
    return [f"{run.student('student').parameters:,} parameters in the student"]


def _pinned_caches(run: RunArtifacts, record: RunRecord) -> list[CacheSource]:
    """What the student read from its first step on, whatever was appended to a cache since."""
    caches = readable_caches(run)
    key = run.student_fingerprint("student")
    pinned = record.pinned("cache_generations", key, [cache.generations for cache in caches])
    return [replace(c, generations=n) for c, n in zip(caches, pinned, strict=True)]


# evaluate and report


def _evaluate(
    run: RunArtifacts, record: RunRecord, progress: StageProgress, groups: WorkerGroups
) -> list[str]:
    config = run.config
    job = EvaluateJob(
        config=config,
        output=run.output,
        prepared=run.prepared_store,
        teacher=run.teacher(),
        models={
            **{name: run.student(name) for name in run.student_names},
            **write_external_references(config, run.prepared),
        },
    )
    groups.run(job, config.evaluate.workers, progress)
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


def _lm_eval_scores(run: RunArtifacts) -> dict[str, HarnessTask]:
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
    run: RunArtifacts, record: RunRecord, progress: StageProgress, groups: WorkerGroups
) -> list[str]:
    # The evaluate stage could not know its own seconds.
    results = read_results(run.output)
    write_results(run.output, {**results, "seconds": record.seconds()})
    write_report(run.output)
    for name in run.student_names:
        write_model_card(run.output, name)
    _show(run)
    return [f"{run.output}/report/index.html"]


def _show(run: RunArtifacts) -> None:
    """The report's charts and tables in W&B."""
    config, found = run.config, load_report_data(run.output)
    gallery = open_wandb_run(config, "report", run.output)
    gallery.summary(summary(found))
    gallery.show(panels(found))
    gallery.finish()


def _model_complete(name: str, run: RunArtifacts, expected: str) -> bool:
    found = read_marker(run.model_store(name))
    return found is not None and found.fingerprint == expected


STAGE_OF = {
    stage.name: stage
    for stage in (
        Stage(
            "prepare",
            lambda run: run.prepare_fingerprint,
            lambda run, record: run.prepared_store.exists("manifest.json"),
            _prepare,
            supports_graceful_stop=False,
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
            supports_graceful_stop=False,
        ),
    )
}
