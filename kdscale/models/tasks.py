"""What a model predicts: the class of transformers that a config stands for.

A config names its class in `architectures`, in every folder that transformers saved; so does one
that is made here. Nothing else has to be told which task it is working on.
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
    """The task of a transformers config; causal language models have many names."""
    for name in config.architectures or ():
        for ending, task in _ENDINGS.items():
            if name.endswith(ending):
                return task
    return "causal-lm"


@dataclass(frozen=True)
class TaskSpec:
    """What a model is for: its task, the classes that it tells apart, and the chunks that it takes
    long documents in."""

    task: Task = "causal-lm"
    classes: tuple[str, ...] = ()
    chunks: ChunksConfig | None = None


CAUSAL_LM = TaskSpec()


def set_purpose(config: Any, purpose: TaskSpec, seq_len: int) -> None:
    """Make a transformers `config` that of a model for `purpose` and rows of `seq_len` tokens,
    in place.

    Raises KdscaleError for an architecture that has no such model, or not the positions for them.
    """
    classes, chunks = purpose.classes, purpose.chunks
    name_class(config, purpose.task)
    if classes:
        config.id2label = dict(enumerate(classes))
        config.label2id = {name: number for number, name in enumerate(classes)}
        # One label of several, also where there are two.
        config.problem_type = "single_label_classification"
    if chunks is not None:
        set_chunks(config, chunks.length, chunks.pooling)
    check_positions(config, longest_input(purpose, seq_len), "model")


def name_class(config: Any, task: Task) -> None:
    """Put into a transformers `config`, in place, the class for `task`. Raises KdscaleError for an
    architecture that has none."""
    try:
        found = _AUTO[task]._model_mapping[type(config)]
    except KeyError as error:
        raise KdscaleError(
            f"transformers has no {_CALLED[task]} of the architecture {config.model_type!r}.",
            "Choose an architecture that has one, such as llama for causal-lm and bert for "
            "masked-lm and sequence-classification.",
        ) from error
    config.architectures = [found.__name__]


def longest_input(purpose: TaskSpec, seq_len: int) -> int:
    """Tokens of a model's longest text: a row, or a chunk of it."""
    return seq_len if purpose.chunks is None else purpose.chunks.length


def model_class(config: Any) -> Any:
    """What builds the model of `config` (`from_config`) and loads it (`from_pretrained`)."""
    return concrete_class(config) if is_chunked(config) else _AUTO[task_of(config)]


def concrete_class(config: Any) -> Any:
    """The class of the model of `config`. Called, it makes one that ZeRO-3 does not partition."""
    found = _AUTO[task_of(config)]._model_mapping[type(config)]
    return chunked_class(found) if is_chunked(config) else found


def describe_task(task: Task) -> str:
    """What a model for `task` is called in a message."""
    return _CALLED[task]
