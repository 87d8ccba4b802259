"""The config of a run before its sizes are chosen: settings by their dotted names."""

import math
import re
from collections.abc import Mapping
from typing import Any

from kdscale.config import RunConfig
from kdscale.config.task import Task
from kdscale.errors import KdscaleError
from kdscale.start.data_kind import FoundData, find_data
from kdscale.start.models import (
    Model,
    check_task,
    find_model,
    has_own_tokenizer,
    student_seq_len,
    token_counts,
)
from kdscale.start.request import Request

Settings = dict[str, Any]
"""Values by the dotted names of fields, as `--set` has them."""

# Tokens of a sequence: enough for most documents of the sample, within these bounds.
_SHORTEST, _LONGEST = 64, {"cpu": 256, "gpu": 1024}
_MOST_OF_THEM = 0.9
# Steps of a teacher whose head starts at random, and their batches.
_HEAD_STEPS, _HEAD_BATCH = 200, 32


def nested(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings as the tree that a YAML file holds."""
    tree: dict[str, Any] = {}
    for name, value in settings.items():
        *sections, last = name.split(".")
        place = tree
        for section in sections:
            place = place.setdefault(section, {})
        place[last] = value
    return tree


def config_of(settings: Mapping[str, Any]) -> RunConfig:
    """Return the config that the settings make."""
    return RunConfig.model_validate(nested(settings))


def draft(request: Request, device: str) -> tuple[Settings, list[str]]:
    """Return the settings of the request for a `device` (cpu or gpu), and notes for the user.

    Raises KdscaleError for models or data that are not there, or that do not go together.
    """
    teacher = find_model("teacher", request.teacher)
    student = None if request.student is None else find_model("student", request.student)
    task = check_task(request.task) or (student or teacher).task
    data = find_data(request.data, task)
    if data.is_single:
        raise KdscaleError(
            f"{request.data!r} holds one document: training and validation need one each.",
            "Give more documents, or cut this one into several, such as a JSON line a chapter.",
        )
    notes = [*data.notes, f"Data: {_described(data)}. Task: {task}."]
    settings: Settings = _named(request, teacher, task)
    settings |= {"data.train": data.source}
    if data.chat is not None:
        settings["data.chat"] = data.chat
    if data.label is not None:
        classes = teacher.classes if teacher.task == task else []
        settings["data.labels"] = {"field": data.label} | ({"classes": classes} if classes else {})
    settings["data.tokenizer"] = {"kind": "teacher"}
    counts = token_counts(teacher, data.texts)
    settings["data.seq_len"] = _seq_len(counts, teacher, student, device)
    settings |= _teacher(teacher, task)
    settings["cache.codec"] = {"kind": "varopt", "k": 16}
    if task == "sequence-classification":
        settings |= {"cache.codec": {"kind": "full"}, "data.long_documents": "truncate"}
    settings |= _student(teacher, student)
    if student is not None and has_own_tokenizer(teacher, student, data.chat is not None):
        settings["distill.tokenizer"] = "student"
        notes.append("The student has another tokenizer than the teacher, and keeps it.")
        own = token_counts(student, data.texts)
        if longer := student_seq_len(own, counts, settings["data.seq_len"]):
            settings["distill.seq_len"] = min(longer, student.positions or longer)
    return settings, notes


def _named(request: Request, teacher: Model, task: Task) -> Settings:
    """Return name, output and task of the run."""
    plain = re.sub(r"[^A-Za-z0-9._-]+", "-", request.teacher.rstrip("/").rpartition("/")[2])
    name = f"{plain.strip('-._')[:50] or 'teacher'}-distilled"
    settings: Settings = {"name": name, "output": request.output or f"runs/{name}"}
    return settings if task == "causal-lm" else settings | {"task": task}


def _described(data: FoundData) -> str:
    """Return what the data are, for a note."""
    kind = data.source["kind"]
    if data.chat is not None:
        return f"{kind}, conversations in {' and '.join(data.chat.values())}"
    label = "" if data.label is None or kind == "text" else f", classes in {data.label!r}"
    what = "a file a document" if kind == "text" else f"text in {_text_field(data)!r}"
    return f"{kind}, {what}{label}"


def _text_field(data: FoundData) -> str:
    return str(data.source.get("text_field", "text"))


def _seq_len(counts: list[int], teacher: Model, student: Model | None, device: str) -> int:
    """Return a power of two that most documents fit in, within what both models take."""
    fitting = sorted(counts)[int(_MOST_OF_THEM * (len(counts) - 1))] if counts else _SHORTEST
    length = 2 ** math.ceil(math.log2(max(fitting, _SHORTEST)))
    taken = [model.positions for model in (teacher, student) if model is not None]
    return min([length, _LONGEST[device], *(most for most in taken if most is not None)])


def _teacher(teacher: Model, task: Task) -> Settings:
    """Return the teacher, trained for the task where its own head is for another."""
    settings: Settings = {"teacher.load": teacher.source}
    if teacher.task == task:
        return settings
    if task == "causal-lm":
        raise KdscaleError(
            f"The teacher {teacher.source!r} is for the task {teacher.task}, not for causal-lm.",
            f"Give a causal language model as the teacher, or --task {teacher.task}.",
        )
    return settings | {
        "teacher.training.steps": _HEAD_STEPS,
        "teacher.training.global_batch_size": _HEAD_BATCH,
        "teacher.training.micro_batch_size": 8,
        "teacher.training.optimiser": {"learning_rate": 1e-4},
    }


def _student(teacher: Model, student: Model | None) -> Settings:
    """Return the student: a model that exists, or every second layer of the teacher."""
    if student is not None:
        return {"distill.student": {"load": student.source}}
    if teacher.layers < 3:
        raise KdscaleError(
            f"The teacher {teacher.source!r} has {teacher.layers} layers: none can be left out.",
            "Give a student: --student FOLDER.",
        )
    count = max(2, teacher.layers // 2)
    return {"distill.student": {"teacher_layers": {"kind": "even", "count": count}}}
