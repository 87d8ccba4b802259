"""The whole config of a run."""

import re
from collections.abc import Iterator
from typing import Any, Literal

from pydantic import Field, model_validator

from kdscale.config.base import Config, Place
from kdscale.config.cache import CacheConfig
from kdscale.config.card import CardConfig
from kdscale.config.data import DataConfig
from kdscale.config.evaluate import EvaluateConfig
from kdscale.config.loss import check_defined
from kdscale.config.student import DistillConfig
from kdscale.config.task import Task
from kdscale.config.teacher import TeacherConfig

# user:password@ of a URL, and what signs one. A lone user@ stays: abfs://container@account.
_CREDENTIALS = re.compile(
    r"://[^/@\s]*:[^/@\s]*@|(?i:[?&](?:sig|x-(?:amz|goog)-(?:signature|security-token))=)"
)


class TrackingConfig(Config):
    """Destinations of metrics besides `metrics/*.jsonl`."""

    wandb: Literal["auto", "online", "offline", "disabled"] = "auto"
    """`auto` is online where an API key is found and offline elsewhere."""

    project: str = Field(default="kdscale", pattern=r"^[^/\\#?%:]{1,128}$")
    """W&B project: at most 128 characters, none of `/\\#?%:`."""

    entity: str | None = None
    """W&B team or user; the account's default when not given."""


class RunConfig(Config):
    """One run: from raw text to an evaluated student."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")
    """Name of the run; W&B groups its stages by it."""

    task: Task = "causal-lm"
    """Task of the models: the next token, masked tokens (masked-lm), or a document's class
    (sequence-classification)."""

    output: Place
    """Local path or fsspec URL (s3://bucket/prefix, gs://, ...) that everything is written to."""

    base: Place | None = None
    """Output of another run that has the rows, the teacher and the cache of this config: they are
    used from there, so that several students share one capture. None: they are made here."""

    seed: int = Field(default=0, ge=0, lt=2**32)
    """Seed of initial weights, data order, dropout and sampling."""

    data: DataConfig = DataConfig()
    teacher: TeacherConfig = TeacherConfig()
    cache: CacheConfig = CacheConfig()
    distill: DistillConfig
    evaluate: EvaluateConfig = EvaluateConfig()
    tracking: TrackingConfig = TrackingConfig()
    card: CardConfig = CardConfig()

    @property
    def aligns(self) -> bool:
        """True if the student has a tokenizer that is not the teacher's."""
        return self.distill.tokenizer == "student"

    @property
    def student_seq_len(self) -> int:
        """Tokens in a sequence of the student."""
        return self.distill.seq_len or self.data.seq_len

    @property
    def packs(self) -> bool:
        """True if a row may hold several documents."""
        return self.data.pack and self.task == "causal-lm"

    @model_validator(mode="after")
    def _no_secrets(self) -> "RunConfig":
        for field, text in _texts(self.model_dump(), ""):
            if _CREDENTIALS.search(text):
                raise ValueError(
                    f"the URL in {field} has a password or signature, and a config is written to "
                    "the run's files, the job and W&B: give it through the environment"
                )
        return self

    @model_validator(mode="after")
    def _task_fits(self) -> "RunConfig":
        if self.task == "causal-lm":
            return self
        if self.data.chat is not None or self.data.long_documents == "drop":
            raise ValueError("data.chat and data.long_documents 'drop' are for the task causal-lm")
        length, online = self.distill.curriculum.length, self.distill.online
        if self.cache.codec.kind != "full" and self.task == "sequence-classification":
            raise ValueError(
                f"a classifier's targets are few numbers: cache.codec {self.cache.codec.kind!r} "
                "saves nothing, set it to {kind: full}"
            )
        if length is not None:
            raise ValueError(
                f"distill.curriculum.length cuts rows, which are whole texts for {self.task}"
            )
        if self.data.chunks is not None and online.layer_outputs:
            raise ValueError("losses on layers compare rows, and data.chunks takes them apart")
        return self

    @model_validator(mode="after")
    def _labels_fit(self) -> "RunConfig":
        data, classifies = self.data, self.task == "sequence-classification"
        if classifies == (data.labels is None):
            raise ValueError("data.labels and the task sequence-classification belong together")
        if data.chunks is not None and not classifies:
            raise ValueError("data.chunks is for the task sequence-classification")
        if data.evaluation_context is not None and self.task != "causal-lm":
            raise ValueError("data.evaluation_context is for the task causal-lm")
        difficulty = self.distill.curriculum.difficulty
        measures = {difficulty} if isinstance(difficulty, str) else set(difficulty.of)
        partly = data.labels is not None and data.labels.share < 1
        if partly and measures & {"nll", "gap"}:
            raise ValueError(
                "difficulties `nll` and `gap` ask for every row's label: with data.labels.share "
                "below 1 some are not known"
            )
        return self

    @model_validator(mode="after")
    def _teacher_where_needed(self) -> "RunConfig":
        if not self.teacher.is_absent:
            return self
        if self.cache.reuse is None:
            raise ValueError(
                "there is no teacher: give teacher.load or teacher.model, or in cache.reuse the "
                "finished cache of a teacher that is not at hand"
            )
        if self.data.tokenizer.kind != "teacher":
            raise ValueError(
                "the tokenizer is that of the cache in cache.reuse: set data.tokenizer.kind to "
                "'teacher'"
            )
        needing = {
            "distill.targets: online": self.distill.targets == "online",
            "distill.student.teacher_layers": self.distill.student.teacher_layers is not None,
            "distill.student.copy_embeddings": self.distill.student.copy_embeddings,
        }
        for field, needs in needing.items():
            if needs:
                raise ValueError(f"{field} needs a teacher: give teacher.load")
        return self

    @model_validator(mode="after")
    def _own_tokenizer_fits(self) -> "RunConfig":
        if not self.aligns:
            return self
        if self.task != "causal-lm" or self.data.chat is not None:
            what = "data.chat" if self.task == "causal-lm" else f"the task {self.task}"
            raise ValueError(
                f"distill.tokenizer `student` is for plain text of causal language models, not for "
                f"{what}: set it to `teacher`"
            )
        if self.cache.temperature != 1:
            raise ValueError(
                f"distill.tokenizer `student` adds up probabilities over classes of tokens, which "
                f"those at cache.temperature {self.cache.temperature:g} do not give: set it to 1"
            )
        return self

    @model_validator(mode="after")
    def _rooms_agree(self) -> "RunConfig":
        trained = self.data.tokenizer.kind == "train"
        if trained and self.teacher.load is not None:
            raise ValueError(
                "a teacher that exists has its own tokenizer: set data.tokenizer.kind to 'teacher'"
            )
        if not trained and self.teacher.load is None and not self.teacher.is_absent:
            raise ValueError("data.tokenizer.kind 'teacher' needs teacher.load")
        if self.distill.targets == "cache" and self.cache.reuse is None:
            check_defined(self.distill.loss.divergence.kind, self.cache.codec.kind)
        length, overlap = self.distill.curriculum.length, self.data.overlap
        if length is not None and min(length.positions.corners) <= overlap:
            raise ValueError(
                f"distill.curriculum.length goes down to {min(length.positions.corners):g} "
                f"positions, of which data.overlap takes {overlap}: none would be a target"
            )
        if length is not None and self.data.chat is not None:
            raise ValueError(
                "distill.curriculum.length cuts rows to their first positions, and with data.chat "
                "there may be no answer in these"
            )
        if self.distill.student.load is not None and "before" in self.evaluate.models:
            raise ValueError(
                "evaluate.models has a `before`, and so has the run itself: the student before "
                "training"
            )
        batch, total = self.distill.training.global_batch_size, self.cache.sequences
        if total is not None and batch > total:
            raise ValueError(
                f"distill.training.global_batch_size {batch} is more than cache.sequences {total}"
            )
        return self


def _texts(tree: Any, name: str) -> Iterator[tuple[str, str]]:
    """Yield the name and value of every text in `tree`."""
    if isinstance(tree, str):
        yield name, tree
    elif isinstance(tree, dict):
        for key, value in tree.items():
            yield from _texts(value, f"{name}.{key}" if name else str(key))
    elif isinstance(tree, list | tuple):
        for number, value in enumerate(tree):
            yield from _texts(value, f"{name}.{number}")
