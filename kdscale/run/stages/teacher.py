"""The teacher stage: a model that exists, or one trained here."""

from kdscale.models.hf_folder import write_reference
from kdscale.run.artifacts import RunArtifacts
from kdscale.run.record import RunRecord
from kdscale.run.stages.base import Stage, check_other_caches, models_complete
from kdscale.teacher.pretrained import check_teacher
from kdscale.teacher.train import TeacherJob
from kdscale.train.job import TrainingJob
from kdscale.workers.group import WorkerGroups
from kdscale.workers.progress import RunningStage


def _make(
    run: RunArtifacts, record: RunRecord, progress: RunningStage, groups: WorkerGroups
) -> list[str]:
    """Refer to an existing teacher, or train one on labels."""
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
    groups.run(TeacherJob(training, run.prepared_store), teacher.workers, progress)
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
