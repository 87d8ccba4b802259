"""Config of a student's start from its teacher or a model that it loads: layers and width."""

from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag, model_validator

from kdscale.config.base import Config
from kdscale.config.operational import Operational
from kdscale.config.training import TeacherSharding


class LayerChoice(Config):
    """`count` of the layers of the model that a student starts from, chosen by a rule."""

    kind: Literal["even", "ends"]
    """`even` spaces them evenly from the first to the last; `ends` takes as many from the front as
    from the back, and one more from the front if their count is odd."""

    count: int = Field(ge=2)
    """Layers of the student."""


def _form(value: Any) -> str:
    """Return the form of a selection that is meant, so that errors name only that one."""
    return "layers" if isinstance(value, list | tuple) else "choice"


LayerSelection = Annotated[
    Annotated[list[int], Tag("layers")] | Annotated[LayerChoice, Tag("choice")],
    Discriminator(_form),
]


class WidthConfig(Config):
    """Sizes of a student narrower than the model that it starts from.

    That model's dimensions with the largest activations on a calibration sample are kept; a size
    that is left out stays the model's, and the size of a head always does.
    """

    hidden_size: int | None = Field(default=None, gt=0)
    """Dimensions of the residual stream."""

    intermediate_size: int | None = Field(default=None, gt=0)
    """Neurons of each MLP."""

    num_attention_heads: int | None = Field(default=None, gt=0)
    """Query heads of each layer."""

    num_key_value_heads: int | None = Field(default=None, gt=0)
    """Key and value heads of each layer. Given alone, each keeps all its query heads."""

    calibration_sequences: int = Field(default=64, gt=0)
    """Training rows that the model reads to find out which dimensions are active."""

    teacher_sharding: Operational[TeacherSharding] = "zero3"
    """`zero3`: the model sharded over the workers for that; `none`: a whole copy on each."""

    @model_validator(mode="after")
    def _some_size(self) -> "WidthConfig":
        heads, groups = self.num_attention_heads, self.num_key_value_heads
        if not (self.hidden_size or self.intermediate_size or heads or groups):
            raise ValueError("`width` gives no size: leave it out, or give one")
        if heads and groups and heads % groups:
            raise ValueError(
                f"num_attention_heads {heads} is no multiple of num_key_value_heads {groups}"
            )
        return self
