"""How every arm of a distillation starts: the student and its baseline from the same weights."""

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
from kdscale.models.init.student_init import Plan, build_student, plan_student
from kdscale.models.init.tensors import TensorFiles
from kdscale.models.load import load_config_of
from kdscale.models.tasks import TaskSpec
from kdscale.types import DataFacts


@dataclass(frozen=True)
class Start:
    """A student before its first step."""

    config: Any  # of transformers
    build: Callable[[], PreTrainedModel]
    """Gives the same weights at every call."""


def plan_start(
    config: RunConfig, prepared: Prepared, teacher: ModelReference, worker: Rank
) -> Start:
    """How the student of `config` starts. Collective.

    Says on rank 0 what is taken from the teacher. Raises KdscaleError for what it cannot give.
    """
    student = config.distill.student
    folder = _weights_folder(teacher) if student.takes_from_teacher else None
    shape = load_config_of(folder) if folder else None
    plan = plan_of(config, prepared, shape)
    kept = None
    if student.width is not None:
        assert folder is not None
        train = prepared.split("train")
        rows = train.take(spread(student.width.calibration_sequences, len(train)))
        kept = plan.keep(calibrate(student.width, folder, None, rows, worker))
    if worker.rank == 0:
        worker.say(f"student: {plan.provenance}")
    files = TensorFiles(folder, shape) if folder else None
    return Start(plan.config, lambda: build_student(plan, files, kept, config.seed))


def plan_of(config: RunConfig, data: DataFacts, teacher: Any | None) -> Plan:
    """How the student of `config` starts, over `data`, from `teacher`, a transformers config; see
    plan_student."""
    return plan_student(
        config.distill.student,
        teacher,
        vocab_size=data.vocab_size,
        special_ids=data.special_ids,
        seq_len=config.data.seq_len,
        purpose=TaskSpec(config.task, data.classes, config.data.chunks),
    )


def _weights_folder(teacher: ModelReference) -> Path:
    if not teacher.is_hub_name:
        return Path(teacher.local())
    from huggingface_hub import snapshot_download

    return Path(snapshot_download(teacher.source, revision=teacher.revision))
