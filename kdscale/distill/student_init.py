"""Start of the student and its baseline: both from the same weights."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from kdscale.config import RunConfig
from kdscale.data.rows.order import spread
from kdscale.data.rows.prepared import Prepared
from kdscale.distributed.rank import Rank
from kdscale.models.hf_folder import ModelReference
from kdscale.models.init.calibrate import calibrate
from kdscale.models.init.plan import InitPlan, build_student, plan_student
from kdscale.models.load import load_config_of
from kdscale.models.stored_tensors import StoredTensors
from kdscale.models.tasks import TaskSpec
from kdscale.types import DataFacts


@dataclass(frozen=True)
class StudentInit:
    """A student before its first step."""

    config: Any  # of transformers
    build: Callable[[], PreTrainedModel]
    """Gives the same weights at every call."""


def init_student(
    config: RunConfig, prepared: Prepared, teacher: ModelReference, worker: Rank
) -> StudentInit:
    """Plan the student of `config` and calibrate it where it is narrower. Collective.

    Rank 0 prints what is taken from the teacher. Raises KdscaleError for what it cannot give.
    """
    student = config.distill.student
    folder = _weights_folder(teacher) if student.takes_from_teacher else None
    shape = load_config_of(folder) if folder else None
    plan = plan_init(config, prepared, shape)
    kept = None
    if student.width is not None:
        assert folder is not None
        train = prepared.split("train")
        rows = train.take(spread(student.width.calibration_sequences, len(train)))
        kept = plan.keep(calibrate(student.width, folder, None, rows, worker))
    if worker.rank == 0:
        worker.say(f"student: {plan.provenance}")
    tensors = StoredTensors.open(folder, shape) if folder else None
    return StudentInit(plan.config, lambda: build_student(plan, tensors, kept, config.seed))


def plan_init(config: RunConfig, data: DataFacts, teacher: Any | None) -> InitPlan:
    """Return the plan of the student of `config`, over `data`; see `plan_student`.

    `teacher` is its transformers config.
    """
    return plan_student(
        config.distill.student,
        teacher,
        vocab_size=data.vocab_size,
        special_ids=data.special_ids,
        seq_len=config.student_seq_len,
        task_spec=TaskSpec(config.task, data.classes, config.data.chunks),
    )


def _weights_folder(teacher: ModelReference) -> Path:
    if not teacher.is_hub_name:
        return Path(teacher.local())
    from huggingface_hub import snapshot_download

    return Path(snapshot_download(teacher.source, revision=teacher.revision))
