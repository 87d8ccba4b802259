"""The teacher stage: a model that exists, or one trained here."""

from kdscale.models.hf_folder import write_reference
from kdscale.run.stages.base import Stage, StageContext, check_other_caches, models_complete
from kdscale.teacher.pretrained import check_teacher
from kdscale.teacher.train import TeacherJob
from kdscale.train.job import TrainingJob


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
    is_complete=lambda run, record: models_complete(run, {"teacher": run.teacher_fingerprint}),
    make=_make,
    check=check_other_caches,
    models=lambda run: {} if run.config.base else {"teacher": run.teacher_fingerprint},
    comes_from_base=True,
)
