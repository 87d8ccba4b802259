"""Config of the evaluate stage."""

from typing import Annotated

from pydantic import Field, field_validator

from kdscale.config.base import Config, Place, PlaceForm, Temperature
from kdscale.config.operational import Later, Operational
from kdscale.config.training import TeacherSharding, WorkersConfig


class SpeedConfig(Config):
    """Measurement of the models' speed, by turns on one device."""

    turns: int = Field(default=15, ge=1)
    """Turns at most in which every model does a batched forward, and of which each compares it with
    the teacher: an interval of that takes 6. Single rows and texts take at most 5 turns."""

    sequences: int = Field(default=8, gt=0)
    """Sequences of a batched forward."""

    new_tokens: int = Field(default=32, gt=0)
    """Tokens of a generated text, which only causal language models write."""

    seconds: float = Field(default=20.0, gt=0)
    """Batches have half of this, single rows and texts the other: no turn but the first begins
    later."""


class SamplesConfig(Config):
    """Text that the models write after the same beginnings of held-out documents."""

    prompts: int = Field(default=4, gt=0)
    """Beginnings, evenly over the rows of the first evaluation set."""

    prompt_tokens: int = Field(default=32, gt=0)
    """Tokens of a beginning; at most half a row."""

    new_tokens: int = Field(default=48, gt=0)
    """Tokens that are written."""

    temperature: Temperature | None = None
    """Each text is written twice: with the likeliest token each time, and with tokens drawn at this
    temperature (None: 1) with the run's seed."""


class AuditConfig(Config):
    """Comparison of the cache's targets with the teacher's whole distributions."""

    positions: int = Field(default=1024, ge=64)
    """Targets at least, of sequences spread evenly over the cache, as far as it has them."""

    draws: int = Field(default=4, ge=2)
    """Draws of each target of a codec that samples: bias and variance come apart by them."""


class EvaluateConfig(Config):
    """The evaluate stage."""

    workers: Operational[WorkersConfig] = WorkersConfig()

    micro_batch_size: Operational[int] = Field(default=8, gt=0)
    """Sequences of one forward on one rank."""

    teacher_sharding: Operational[TeacherSharding] = "zero3"
    """`zero3`: the teacher sharded over the workers; `none`: a whole copy on each. Students are
    whole on each worker."""

    speed: SpeedConfig | None = SpeedConfig()
    """Measurement of speed; null leaves it out."""

    samples: SamplesConfig | None = SamplesConfig()
    """Text that causal language models write; null leaves it out, and with it all held-out text in
    results and report: also that of the positions where student and teacher disagree most."""

    audit: Later[AuditConfig | None] = AuditConfig()
    """A small audit of the cache; null leaves it out. `kdscale cache audit` makes a larger one."""

    models: dict[Annotated[str, Field(pattern=r"^[A-Za-z][A-Za-z0-9._-]{0,31}$")], Place] = {}
    """Other models to evaluate beside teacher, student and baseline: a Hugging Face folder (local
    path or fsspec URL) or hub name by the name of its row. They need the run's tokenizer."""

    def place_form(self, field: str) -> PlaceForm:
        """Return what `field`, of the type Place, holds."""
        return "hub"

    @field_validator("models")
    @classmethod
    def _names_are_free(cls, value: dict[str, str]) -> dict[str, str]:
        if taken := sorted({"teacher", "student", "baseline"} & set(value)):
            raise ValueError(f"{', '.join(taken)}: the run itself has a model of this name")
        return value
