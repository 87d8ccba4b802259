"""Config of a teacher that runs beside its student."""

from typing import Literal

from pydantic import Field, model_validator

from kdscale.config.base import Config
from kdscale.config.curriculum import Schedule


class HiddenConfig(Config):
    """Hidden states of student and teacher are to agree, layer by layer."""

    kind: Literal["mse", "cosine"] = "mse"
    """`mse`: mean squared difference; `cosine`: 1 - cosine."""

    weight: float = Field(default=1.0, gt=0)
    """The mean over the pairs of layers is added to the loss with this weight."""

    layers: tuple[tuple[int, int], ...] | None = Field(default=None, min_length=1)
    """Pairs of a student's and a teacher's layer, counted from 0; by default every layer of the
    student with the teacher's at the same share of its depth. Where widths differ, the student's
    states go through a learned linear map of its own for each pair."""


class LiveConfig(Config):
    """`distill.targets: live`: every step runs the teacher over the student's rows.

    It costs a teacher's forward a step, and gives what a cache of samples cannot: the whole
    distribution, for every divergence and at any temperature, and its hidden states.
    """

    zero: Literal[0, 3] = 0
    """0: the teacher whole on every worker; 3: sharded over them (DeepSpeed ZeRO-3)."""

    temperature: Schedule | None = None
    """Logits of teacher and student are divided by this before the softmax; by default the cache's
    temperature."""

    hidden: HiddenConfig | None = None
    """A loss between hidden states, on top of the others."""

    @model_validator(mode="after")
    def _temperatures_positive(self) -> "LiveConfig":
        for value in self.temperature.corners if self.temperature else ():
            if value <= 0:
                raise ValueError(f"temperature {value} is not above 0")
        return self
