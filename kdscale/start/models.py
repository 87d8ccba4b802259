"""Facts about teacher and student for a config: task, layers, tokenizers, lengths."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from kdscale.config.task import Task
from kdscale.data.pretrained_tokenizer import load_tokenizer
from kdscale.data.same_tokenizer import check_same_tokenizer
from kdscale.errors import KdscaleError
from kdscale.models.hf_folder import loadable
from kdscale.models.load import load_config_of
from kdscale.models.positions import usable_positions
from kdscale.store import explained

_HEADS: dict[str, Task] = {
    "ForSequenceClassification": "sequence-classification",
    "ForMaskedLM": "masked-lm",
}
_TALLEST_TEXT = 200_000  # characters of a document that are tokenised
_MARGIN = 1.1  # over the share of a student's tokens on the sample


@dataclass(frozen=True)
class Model:
    """A model that exists: its source as a config names it, and what transformers says of it."""

    source: str
    here: str  # what transformers takes on this machine
    config: Any

    @property
    def layers(self) -> int:
        """Number of its layers."""
        return int(self.config.get_text_config().num_hidden_layers)

    @property
    def positions(self) -> int | None:
        """Tokens that it takes; None where there is no end."""
        return usable_positions(self.config)

    @property
    def classes(self) -> list[str]:
        """Names of the classes that a classifier tells apart; none where they are only numbered."""
        names = [str(name) for _, name in sorted(self.config.id2label.items())]
        return [] if all(name.startswith("LABEL_") for name in names) else names

    @property
    def task(self) -> Task:
        """The task that its head is for."""
        name = next(iter(self.config.architectures or ()), "")
        return next((task for end, task in _HEADS.items() if name.endswith(end)), "causal-lm")


@explained()
def find_model(role: str, source: str) -> Model:
    """Return the model at `source`, a folder, URL or hub name, without its weights.

    `role` names it in errors. Raises KdscaleError where there is none.
    """
    try:
        here = loadable(source, weights=False)
        return Model(source, here, load_config_of(here))
    except KdscaleError as error:
        raise KdscaleError(f"The {role} --{role} {source!r}: {error.problem}", error.fix) from error


def check_task(text: str | None) -> Task | None:
    """Return the task of this name. Raises KdscaleError for another."""
    known: dict[str, Task] = {name: name for name in get_args(Task)}
    if text is None or text in known:
        return None if text is None else known[text]
    raise KdscaleError(f"There is no task {text!r}.", f"Choose one of {', '.join(known)}.")


def has_own_tokenizer(teacher: Model, student: Model, is_chat: bool) -> bool:
    """Return whether the student's folder has a tokenizer that gives other ids than the teacher's.

    One without a tokenizer takes the teacher's.
    """
    load_tokenizer(teacher.here)  # says what is wrong with the teacher's
    try:
        check_same_tokenizer(
            student.here,
            None,
            Path(teacher.here),
            is_chat=is_chat,
            note=lambda _: None,
            fix="",
        )
    except KdscaleError:
        return True
    return False


def token_counts(model: Model, texts: Sequence[str]) -> list[int]:
    """Return how many tokens each of the texts has."""
    tokenizer = load_tokenizer(model.here)
    cut = [text[:_TALLEST_TEXT] for text in texts]
    return [len(tokenizer(text, add_special_tokens=False)["input_ids"]) for text in cut]


def student_seq_len(own: Sequence[int], teachers: Sequence[int], seq_len: int) -> int | None:
    """Return the tokens of a student's sequence with the text of `seq_len` of the teacher's.

    `own` and `teachers` are tokens of the same texts. None where those of the teacher do.
    """
    share = _MARGIN * sum(own) / max(1, sum(teachers))
    return None if share <= _MARGIN else 8 * math.ceil(seq_len * share / 8)
