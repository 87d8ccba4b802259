"""Config of a teacher that runs beside its student."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from kdscale.config.base import LEAST_TEMPERATURE, MOST_TEMPERATURE, Config
from kdscale.config.curriculum import Schedule
from kdscale.config.operational import Operational
from kdscale.config.training import TeacherGroup, TeacherSharding

LayerPairs = Annotated[tuple[tuple[int, int], ...], Field(min_length=1)]


class HiddenConfig(Config):
    """A loss between hidden states of student and teacher, layer by layer."""

    kind: Literal["mse", "cosine"] = "mse"
    """`mse`: mean squared difference; `cosine`: 1 - cosine."""

    weight: float = Field(default=1.0, gt=0)
    """The mean over the pairs of layers is added to the loss with this weight."""

    layers: LayerPairs | None = None
    """Pairs of a student's and a teacher's layer, counted from 0; by default every layer of the
    student with the teacher's at the same share of its depth. Where widths differ, the student's
    states go through a learned linear map, one for each pair."""


class AttentionConfig(Config):
    """A loss between attention weights of student and teacher, layer by layer.

    Heads are averaged first, because their numbers differ.
    """

    kind: Literal["kl", "mse"] = "kl"
    """`kl`: KL(teacher || student) over the keys that a query looks at; `mse`: the squared
    difference, summed over the keys."""

    weight: float = Field(default=1.0, gt=0)
    """The mean over the pairs of layers is added to the loss with this weight."""

    layers: LayerPairs | None = None
    """Pairs of a student's and a teacher's layer, counted from 0; by default every layer of the
    student with the teacher's at the same share of its depth. [[11, 29]], the last ones alone, is
    what MiniLM compares."""


class TaidConfig(Config):
    """TAID (Shing et al., arXiv:2501.16937).

    The target moves from the student's own distribution to the teacher's; t is the teacher's share,
    1 at the last step.
    """

    start: float = Field(default=0.4, ge=0, lt=1)
    """t at the first step."""

    alpha: float = Field(default=5e-4, ge=0, le=1)
    """Speed at which t may run ahead of the straight line from `start` to 1, as the loss falls."""

    beta: float = Field(default=0.99, ge=0, lt=1)
    """Decay of the mean of the loss's relative change, which drives t."""


class OnlineConfig(Config):
    """`distill.targets: online`: every step runs the teacher over the student's sequences.

    It costs a teacher's forward a step, and gives what a cache of samples cannot: the whole
    distribution, for every divergence and at any temperature, and what its layers do.
    """

    teacher_sharding: Operational[TeacherSharding] = "none"
    """`none`: the teacher whole on every worker; `zero3`: sharded over them (DeepSpeed ZeRO-3)."""

    teacher_group: Operational[TeacherGroup] = "auto"
    """Workers that hold a sharded teacher together; see cache.capture.teacher_group."""

    temperature: Schedule | None = None
    """Logits of teacher and student are divided by this before the softmax; by default the cache's
    temperature."""

    hidden: HiddenConfig | None = None
    """A loss between hidden states, on top of the others."""

    attention: AttentionConfig | None = None
    """A loss between attention weights, on top of the others. Student and teacher then compute
    their attention in the way that has them in memory, [sequences, heads, positions, positions] a
    layer."""

    taid: TaidConfig | None = None
    """Targets between student and teacher, for the forward KL; {} takes what the paper does."""

    @property
    def layer_outputs(self) -> tuple[Literal["hidden", "attention"], ...]:
        """Outputs of layers that these losses need."""
        names: tuple[Literal["hidden", "attention"], ...] = ("hidden", "attention")
        return tuple(name for name in names if getattr(self, name) is not None)

    @model_validator(mode="after")
    def _temperatures_in_range(self) -> "OnlineConfig":
        for value in self.temperature.corners if self.temperature else ():
            if not LEAST_TEMPERATURE <= value <= MOST_TEMPERATURE:
                raise ValueError(
                    f"temperature {value:g} is outside {LEAST_TEMPERATURE:g}..{MOST_TEMPERATURE:g}"
                )
        return self
