"""Task of a model: the class of transformers that a config stands for.

A config names its class in `architectures`, in every folder that transformers saved; so does one
that is made here. Nothing else needs to know the task that it is working on.
"""

from dataclasses import dataclass
from typing import Any

from transformers import (
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
)

from kdscale.config.data import ChunksConfig
from kdscale.config.task import Task
from kdscale.errors import KdscaleError
from kdscale.models.chunked_classifier import chunked_class, is_chunked, set_chunks
from kdscale.models.positions import check_positions

_AUTO: dict[Task, Any] = {
    "causal-lm": AutoModelForCausalLM,
    "masked-lm": AutoModelForMaskedLM,
    "sequence-classification": AutoModelForSequenceClassification,
}
_ENDINGS: dict[str, Task] = {
    "ForMaskedLM": "masked-lm",
    "ForSequenceClassification": "sequence-classification",
}
_CALLED: dict[Task, str] = {
    "causal-lm": "causal language model",
    "masked-lm": "masked language model",
    "sequence-classification": "sequence classifier",
}


def task_of(config: Any) -> Task:
    """Return the task of a transformers config; causal language models have many names."""
    for name in config.architectures or ():
        for ending, task in _ENDINGS.items():
            if name.endswith(ending):
                return task
    return "causal-lm"


@dataclass(frozen=True)
class TaskSpec:
    """Task of a model, the classes that it tells apart, and the chunks of its long documents."""

    task: Task = "causal-lm"
    classes: tuple[str, ...] = ()
    chunks: ChunksConfig | None = None


CAUSAL_LM = TaskSpec()


def set_task(config: Any, task_spec: TaskSpec, seq_len: int) -> None:
    """Make a transformers `config`, in place, that of a model for a task and `seq_len` tokens.

    Raises KdscaleError for an architecture that has no such model, or too few positions.
    """
    classes, chunks = task_spec.classes, task_spec.chunks
    name_class(config, task_spec.task)
    if classes:
        config.id2label = dict(enumerate(classes))
        config.label2id = {name: number for number, name in enumerate(classes)}
        # One label of several, also where there are two.
        config.problem_type = "single_label_classification"
    if chunks is not None:
        set_chunks(config, chunks.length, chunks.pooling)
    check_positions(config, longest_input(task_spec, seq_len), "model")


def name_class(config: Any, task: Task) -> None:
    """Put the class for `task` into a transformers `config`, in place.

    Raises KdscaleError for an architecture that has none.
    """
    try:
        found = _AUTO[task]._model_mapping[type(config)]
    except KeyError as error:
        raise KdscaleError(
            f"transformers has no {_CALLED[task]} of the architecture {config.model_type!r}.",
            "Choose an architecture that has one, such as llama for causal-lm and bert for "
            "masked-lm and sequence-classification.",
        ) from error
    config.architectures = [found.__name__]


def longest_input(task_spec: TaskSpec, seq_len: int) -> int:
    """Return the tokens of a model's longest text: a sequence, or a chunk of it."""
    return seq_len if task_spec.chunks is None else task_spec.chunks.length


def model_class(config: Any) -> Any:
    """Return what builds (`from_config`) or loads (`from_pretrained`) the model of `config`."""
    return concrete_class(config) if is_chunked(config) else _AUTO[task_of(config)]


def concrete_class(config: Any) -> Any:
    """Return the class of the model of `config`; called, it makes one that ZeRO-3 leaves whole."""
    found = _AUTO[task_of(config)]._model_mapping[type(config)]
    return chunked_class(found) if is_chunked(config) else found


def describe_task(task: Task) -> str:
    """Return the name in messages of a model for `task`."""
    return _CALLED[task]
