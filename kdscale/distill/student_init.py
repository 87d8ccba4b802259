"""Start of the student and its baseline: both from the same weights."""

import copy
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from kdscale.config import RunConfig
from kdscale.data.rows.order import spread
from kdscale.data.rows.prepared import Prepared
from kdscale.data.same_tokenizer import check_same_tokenizer
from kdscale.distributed.rank import Rank
from kdscale.models.chunked_classifier import CHUNKS
from kdscale.models.hf_folder import ModelReference, is_folder, loadable
from kdscale.models.init.calibrate import calibrate
from kdscale.models.init.plan import InitPlan, absent_tensors, build_student, plan_student
from kdscale.models.load import fit_to_task, load_config_of, load_model
from kdscale.models.tasks import TaskSpec
from kdscale.types import DataFacts

# All that a model is loaded from; its repository may hold it in other formats too.
_FILES = ("*.json", "*.safetensors")


@dataclass(frozen=True)
class StudentInit:
    """A student before its first step."""

    config: Any  # of transformers
    build: Callable[[], PreTrainedModel]
    """Gives the same weights at every call."""

    is_stored: bool = False
    """True if the files in distill.student.load are this very model."""


def init_student(
    config: RunConfig, prepared: Prepared, teacher: ModelReference | None, worker: Rank
) -> StudentInit:
    """Plan the student of `config` and calibrate it where it is narrower. Collective.

    Rank 0 prints where its weights come from. Raises KdscaleError for what cannot be had from
    there.
    """
    student = config.distill.student
    folder, shape, absent = None, None, list[str]()
    if student.load is not None:
        folder = _weights_folder(loadable(student.load), student.revision)
        shape = loaded_config(config, prepared, load_config_of(folder))
        absent = absent_tensors(folder, None, shape)
    elif student.takes_from_teacher:
        assert teacher is not None
        folder = _weights_folder(teacher.local(), teacher.revision)
        shape = load_config_of(folder)
    plan = plan_init(config, prepared, shape, absent)
    kept = None
    if student.width is not None:
        assert folder is not None
        train = prepared.split("train")
        rows = train.take(spread(student.width.calibration_sequences, len(train)))
        further = None if student.load is None else shape
        kept = plan.keep(calibrate(student.width, folder, further, rows, worker))
    if worker.rank == 0:
        worker.say(f"student: {plan.provenance}")
    if plan.is_whole:
        assert folder is not None
        is_stored = not absent and is_of_task(load_config_of(folder), plan.config)
        return StudentInit(plan.config, lambda: _load(folder, plan.config, config.seed), is_stored)
    tensors = plan.open_sources(folder) if folder else None
    return StudentInit(plan.config, lambda: build_student(plan, tensors, kept, config.seed))


def plan_init(
    config: RunConfig, data: DataFacts, start: Any | None, absent: Collection[str] = ()
) -> InitPlan:
    """Return the plan of the student of `config`, over `data`; see `plan_student`.

    `start` is the transformers config of its teacher, or what `loaded_config` returns.
    """
    return plan_student(
        config.distill.student,
        start,
        vocab_size=data.vocab_size,
        special_ids=data.special_ids,
        seq_len=config.student_seq_len,
        task_spec=_task_spec(config, data),
        absent=absent,
    )


def loaded_config(config: RunConfig, data: DataFacts, shape: Any) -> Any:
    """Return the transformers config `shape` of the model in distill.student.load, for the run.

    Raises KdscaleError where its task, vocabulary or length does not fit.
    """
    length, ids = config.student_seq_len, data.special_ids
    fit_to_task(shape, data.vocab_size, ids, length, _task_spec(config, data), "student")
    return shape


def check_student_tokenizer(
    config: RunConfig, source: str, tokenizer: Path, note: Callable[[str], None]
) -> None:
    """Refuse a student to be loaded from `source` whose tokenizer is not that in `tokenizer`.

    `note` takes what differs without harm.
    """
    check_same_tokenizer(
        source,
        config.distill.student.revision,
        tokenizer,
        is_chat=config.data.chat is not None,
        note=note,
        fix="Load a student that was trained with the run's tokenizer, or let a causal language "
        "model keep its own: distill.tokenizer: student.",
    )


def is_of_task(found: Any, wanted: Any) -> bool:
    """Return whether a model of the config `found` is loaded as `wanted` has it.

    Of the same class, with the same classes and chunks.
    """
    names = ("architectures", "id2label", CHUNKS)
    return all(getattr(found, name, None) == getattr(wanted, name, None) for name in names)


def _load(folder: Path, shape: Any, seed: int) -> PreTrainedModel:
    """Load a model; what it has no weights for starts at random."""
    torch.manual_seed(seed)
    return load_model(folder, config=copy.deepcopy(shape))


def _task_spec(config: RunConfig, data: DataFacts) -> TaskSpec:
    return TaskSpec(config.task, data.classes, config.data.chunks)


def _weights_folder(source: str, revision: str | None) -> Path:
    """Return a local folder with the model at `source`, a folder or a hub name."""
    if is_folder(source):
        return Path(source)
    from huggingface_hub import snapshot_download

    return Path(snapshot_download(source, revision=revision, allow_patterns=list(_FILES)))
