"""Config of a teacher that runs beside its student."""

from typing import Literal

from pydantic import model_validator

from kdscale.config.base import Config
from kdscale.config.curriculum import Schedule


class LiveConfig(Config):
    """`distill.targets: live`: every step runs the teacher over the student's rows.

    It costs a teacher's forward a step, and gives what a cache of samples cannot: the whole
    distribution, for every divergence and at any temperature.
    """

    zero: Literal[0, 3] = 0
    """0: the teacher whole on every worker; 3: sharded over them (DeepSpeed ZeRO-3)."""

    temperature: Schedule | None = None
    """Logits of teacher and student are divided by this before the softmax; by default the cache's
    temperature."""

    @model_validator(mode="after")
    def _temperatures_positive(self) -> "LiveConfig":
        for value in self.temperature.corners if self.temperature else ():
            if value <= 0:
                raise ValueError(f"temperature {value} is not above 0")
        return self
