"""The teacher stage: a model that exists, or one trained here."""

from kdscale.models.hf_folder import write_reference
from kdscale.run.artifacts import RunArtifacts
from kdscale.run.record import RunRecord
from kdscale.run.stages.base import Stage, StageContext, check_other_caches, models_complete
from kdscale.teacher.pretrained import check_teacher
from kdscale.teacher.train import TeacherJob
from kdscale.train.job import TrainingJob


def _models(run: RunArtifacts) -> dict[str, str]:
    """Return the teacher, if the run has one of its own."""
    if run.config.base or run.config.teacher.is_absent:
        return {}
    return {"teacher": run.teacher_fingerprint}


def _is_complete(run: RunArtifacts, record: RunRecord) -> bool:
    absent = run.config.teacher.is_absent
    return absent or models_complete(run, {"teacher": run.teacher_fingerprint})


def _make(context: StageContext) -> list[str]:
    """Refer to an existing teacher, or train one on labels."""
    run = context.run
    config, teacher = run.config, run.config.teacher
    if teacher.training is None:
        assert teacher.load is not None
        check_teacher(config, run.prepared)
        store = run.output.child("teacher")
        write_reference(store, teacher.load, teacher.revision, run.teacher_fingerprint)
        return [f"uses {teacher.load}"]
    training = TrainingJob(
        name="teacher",
        fingerprint=run.teacher_fingerprint,
        config=config,
        training=teacher.training,
        output=run.output,
        fence=run.fence,
    )
    context.groups.run(TeacherJob(training, run.prepared_store), teacher.workers, context.progress)
    return [f"{run.teacher().parameters:,} parameters"]


STAGE = Stage(
    name="teacher",
    fingerprint=lambda run: run.teacher_fingerprint,
    is_complete=_is_complete,
    make=_make,
    check=check_other_caches,
    models=_models,
    comes_from_base=True,
)
