"""Config of the teacher: one that exists, or one trained here."""

from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from kdscale.config.base import Config, Place, PlaceForm, not_finite
from kdscale.config.operational import Operational
from kdscale.config.training import (
    AttentionChoice,
    TeacherGroup,
    TeacherSharding,
    TrainingConfig,
    WorkersConfig,
    ZeroConfig,
    check_teacher_group,
)


class ModelConfig(Config):
    """A causal language model of transformers, built from its config."""

    architecture: str
    """`model_type` of transformers, such as `llama`, `gpt2`, `qwen3`."""

    options: dict[str, Any] = {}
    """Fields of that architecture's config. `vocab_size` and the special ids come from the
    tokenizer."""

    pad_vocab_to_multiple_of: int = Field(default=1, ge=1)
    """Round the embedding's rows up; the added ids never receive probability."""

    @field_validator("options")
    @classmethod
    def _options_are_finite(cls, value: dict[str, Any]) -> dict[str, Any]:
        if found := [f"{name} {number}" for name, number in not_finite(value)]:
            raise ValueError(f"{', '.join(found)}: give a finite number")
        return value


class TeacherConfig(Config):
    """Either `load`, which `training` may train further, or `model` with `training`.

    Left out where `cache.reuse` has the distributions of a teacher that is not at hand.
    """

    load: Place | None = None
    """Hugging Face folder (local path or fsspec URL) or hub name of an existing teacher."""

    revision: str | None = None
    """Commit of a hub name; give it, so that the same config always means the same weights."""

    model: ModelConfig | None = None
    """Architecture of a teacher trained here."""

    training: TrainingConfig | None = None
    """Training of the teacher here: from the start, or further from `load`. What the model in
    `load` lacks for the run's task, such as a classifier's head, starts at random."""

    workers: Operational[WorkersConfig] = WorkersConfig()
    """Workers that train it."""

    attention: Operational[AttentionChoice] = "auto"
    """Kernel of its attention, wherever it runs. `auto` takes on GPUs one that keeps packed
    documents apart without a mask [T, T], where the architecture has one: `flash_attention_2` if
    flash-attn is installed and weights are bfloat16, else `flex_attention`, else `sdpa`; on CPUs
    what transformers takes. The first two are for GPUs alone, and count as `auto` elsewhere."""

    def place_form(self, field: str) -> PlaceForm:
        """Return what `field`, of the type Place, holds."""
        return "hub"

    @property
    def is_absent(self) -> bool:
        """True if there is no teacher in this run: a finished cache stands for it."""
        return self.load is None and self.model is None

    @model_validator(mode="after")
    def _one_of_both(self) -> "TeacherConfig":
        if self.load is not None and self.model is not None:
            raise ValueError("give either `load` or `model`")
        if self.is_absent and self.training is not None:
            raise ValueError("`training` needs a teacher: give either `load` or `model`")
        if self.model is not None and self.training is None:
            raise ValueError("a `model` that starts at random needs `training`")
        return self


class CaptureConfig(Config):
    """The teacher's run over the sequences to be cached."""

    workers: Operational[WorkersConfig] = WorkersConfig()

    teacher_sharding: Operational[TeacherSharding] = "zero3"
    """`zero3`: the teacher sharded over the workers (DeepSpeed ZeRO-3), so that no rank ever holds
    all of it; `none`: a whole copy on each worker."""

    teacher_group: Operational[TeacherGroup] = "auto"
    """Workers that hold a sharded teacher together; each such group holds all of it. `node`: those
    of a node, so that it is gathered over the fast link between its GPUs; a number: so many in a
    row; `all`: one group. `auto` takes those of a node if they are GPUs and a worker's share of the
    weights takes at most half of its memory, else all."""

    teacher_offload: Operational[Literal["none", "cpu"]] = "none"
    """Place of a sharded teacher's parameters between uses."""

    micro_batch_size: Operational[int] = Field(default=8, gt=0)
    """Sequences of one forward on one rank."""

    queue_batches: int = Field(default=4, ge=1)
    """Forwards whose hidden states may wait for encoding before the teacher has to pause. GPUs
    only: a CPU worker encodes between its forwards."""

    @model_validator(mode="after")
    def _offload_needs_sharding(self) -> "CaptureConfig":
        if self.teacher_offload != "none" and self.teacher_sharding == "none":
            raise ValueError("teacher_offload needs teacher_sharding zero3")
        return self

    @model_validator(mode="after")
    def _groups_are_equal(self) -> "CaptureConfig":
        check_teacher_group(self.teacher_group, self.teacher_sharding, self.workers)
        return self

    @property
    def zero(self) -> ZeroConfig:
        """ZeRO settings of the teacher."""
        return ZeroConfig.for_teacher(self.teacher_sharding, self.teacher_offload)
