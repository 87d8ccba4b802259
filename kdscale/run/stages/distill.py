"""The distill stage: the student from the cache, its baseline from labels alone."""

from dataclasses import replace

from kdscale.cache.commit.manifest import load_manifest
from kdscale.cache.commit.plan import find_generation
from kdscale.cache.read.reader import CacheSource
from kdscale.distill.alignment.student_data import AlignedPrepared
from kdscale.distill.before import BeforeJob
from kdscale.distill.student_init import check_student_tokenizer, loaded_config
from kdscale.distill.worker import DistillJob
from kdscale.models.hf_folder import loadable
from kdscale.models.load import load_config_of
from kdscale.run.artifacts import RunArtifacts
from kdscale.run.record import RunRecord
from kdscale.run.stages.base import Stage, StageContext, check_other_caches, models_complete
from kdscale.store import Store
from kdscale.train.job import TrainingJob


def _check(run: RunArtifacts) -> None:
    """Refuse caches and a loaded student that do not fit the tokenizer that this run has made."""
    check_other_caches(run)
    config, student, prepared = run.config, run.config.distill.student, run.prepared
    own = run.student_tokenizer  # the two tokenizers meet here, before a worker starts
    if student.load is None or config.data.tokenizer.kind != "train":
        return  # compared before anything started
    source = loadable(student.load, weights=False)
    if own is None:
        folder = prepared.tokenizer_folder()
        check_student_tokenizer(config, source, folder, _note)
    data = prepared if own is None else AlignedPrepared(prepared, own)
    loaded_config(config, data, load_config_of(source, student.revision))


def _note(text: str) -> None:
    print(f"note: {text}", flush=True)


def _models(run: RunArtifacts) -> dict[str, str]:
    # Their fingerprints are of the cache, and that of the teacher's and the tokenizer's.
    absent = run.config.teacher.is_absent
    known = absent or models_complete(run, {"teacher": run.teacher_fingerprint})
    known = known and run.prepared_store.exists("manifest.json")
    return _fingerprints(run) if known else {}


def _make(context: StageContext) -> list[str]:
    """Train the student and its baseline."""
    run = context.run
    trainings = [
        TrainingJob(
            name=name,
            fingerprint=run.student_fingerprint(name),
            config=run.config,
            training=run.config.distill.training,
            output=run.output,
            fence=run.fence,
        )
        for name in run.student_names
    ]
    job = DistillJob(
        trainings=trainings,
        prepared=run.prepared_store,
        caches=_pinned_caches(run, context.record),
        expected=run.cache_needs,
        teacher=run.teacher_if_present(),
        tables=run.output.child(f"curriculum/{run.student_fingerprint('student')}"),
        before=_before(run),
        tokenizer=run.student_tokenizer,
    )
    context.groups.run(job, run.config.distill.workers, context.progress)
    return [f"{run.student('student').parameters:,} parameters in the student"]


def _before(run: RunArtifacts) -> BeforeJob | None:
    if not run.keeps_before:
        return None
    return BeforeJob(run.student_fingerprint("before"), run.output, run.fence)


def _fingerprints(run: RunArtifacts) -> dict[str, str]:
    return {name: run.student_fingerprint(name) for name in run.evaluated_names}


def _pinned_caches(run: RunArtifacts, record: RunRecord) -> list[CacheSource]:
    """Return the caches as the student read them from its first step on.

    Later appends change nothing for a student; a repair does it good.
    """
    caches = [CacheSource(store, _generations(run, store), w) for store, w in run.cache_stores]
    key = run.student_fingerprint("student")
    pinned = record.pinned("cache_generations", key, [cache.generations for cache in caches])
    return [replace(c, generations=n) for c, n in zip(caches, pinned, strict=True)]


def _generations(run: RunArtifacts, store: Store) -> int:
    """Return how many generations there are; of a cache that this run filled, up to its own."""
    found = find_generation(store, run.rows_fingerprint, run.selection_hash)
    if run.config.cache.reuse is None and found is not None:
        return found[0] + 1
    return len(load_manifest(store).generations)


STAGE = Stage(
    name="distill",
    fingerprint=lambda run: run.student_fingerprint("student"),
    is_complete=lambda run, record: models_complete(run, _fingerprints(run)),
    make=_make,
    check=_check,
    models=_models,
)
