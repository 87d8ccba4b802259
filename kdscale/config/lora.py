"""Config of LoRA: adapters that are trained in place of a student's own weights."""

from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag

from kdscale.config.base import Config

ALL_LINEAR, BY_ARCHITECTURE = "all-linear", "architecture"


def _form(value: Any) -> str:
    """Return the form of `target_modules` that is meant, so that errors name only that one."""
    return "names" if isinstance(value, list | tuple) else "choice"


TargetModules = Annotated[
    Annotated[tuple[str, ...], Field(min_length=1), Tag("names")]
    | Annotated[Literal["all-linear", "architecture"], Tag("choice")],
    Discriminator(_form),
]


class LoraConfig(Config):
    """LoRA (Hu et al., arXiv:2106.09685): y = W x + (alpha / r) B A x, with W as it is.

    A [r, in] starts at random and B [out, r] at 0, so that training starts from the student's first
    weights.
    """

    r: int = Field(default=16, gt=0)
    """Rank of the adapters."""

    alpha: float = Field(default=32.0, gt=0)
    """Strength of the adapters: their sum is multiplied by alpha / r."""

    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Dropout of the adapters' inputs; apart from training.dropout, which is the model's own."""

    target_modules: TargetModules = "all-linear"
    """Linear maps with an adapter: `all-linear` for all but the head, `architecture` for those that
    the library peft names for the architecture (mostly queries and values), or a list of ends of
    module names, such as [q_proj, v_proj]."""

    quantise: Literal["none", "nf4"] = "none"
    """`nf4` holds the weights of linear maps in four bits in training (QLoRA, arXiv:2305.14314), on
    GPUs only, with distill.training.zero.stage 0 and the package bitsandbytes."""
