"""Config of the loss: which divergence, mixed how with cross-entropy, on which targets.

Only the forward KL is linear in the target: with E[t] = p its gradient q - t is unbiased on samples
(`sample`, `varopt`). Every other loss would be biased there by the samples' own noise, so it is
refused. On `topk` a loss is exact over the K listed ids and the ghost bucket, which is a biased
view of the vocabulary; on `full` and with the online teacher it is exact.
"""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from kdscale.config.base import Config
from kdscale.config.curriculum import Schedule
from kdscale.errors import KdscaleError

Status = Literal["exact", "unbiased", "biased", "undefined"]
SOURCES = ("online", "full", "topk", "sample", "varopt")
"""The online teacher, and the kinds of codec."""

_SAMPLED = ("sample", "varopt")
_WHOLE = ("online", "full")


class ForwardKl(Config):
    """KL(p || q): mode covering, and the only one that sampled targets leave unbiased."""

    kind: Literal["forward_kl"] = "forward_kl"


class ReverseKl(Config):
    """KL(q || p): mode seeking.

    Where p is 0, q costs 87 nats; on `topk` no listed id and no ghost bucket counts for less than
    1e-8, as rounding may have left it nothing.
    """

    kind: Literal["reverse_kl"]


class JensenShannon(Config):
    """beta KL(p || m) + (1 - beta) KL(q || m), m = beta p + (1 - beta) q (GKD)."""

    kind: Literal["jensen_shannon"]

    beta: float = Field(default=0.5, gt=0, lt=1)
    """Weight of the teacher in the mixture. Towards 0 the loss behaves like the forward KL times
    beta, towards 1 like the reverse KL times 1 - beta: at the ends it would vanish, and the two are
    kinds of their own (TRL's generalized_jsd_loss turns into them at 0 and 1)."""


class SkewedKl(Config):
    """KL(p || alpha p + (1 - alpha) q) (DistiLLM)."""

    kind: Literal["skewed_kl"]

    alpha: float = Field(default=0.1, ge=0, lt=1)
    """Share of the teacher that is mixed into the student."""


class SkewedReverseKl(Config):
    """KL(q || alpha q + (1 - alpha) p) (DistiLLM)."""

    kind: Literal["skewed_reverse_kl"]

    alpha: float = Field(default=0.1, ge=0, lt=1)
    """Share of the student that is mixed into the teacher."""


class AdaptiveKl(Config):
    """Forward and reverse KL, weighted by where the student is wrong: head or tail."""

    kind: Literal["adaptive_kl"]

    head_mass: float = Field(default=0.5, gt=0, lt=1)
    """Probability of the teacher that makes the head, with the class that reaches it."""


class TotalVariation(Config):
    """1/2 sum |p - q|."""

    kind: Literal["total_variation"]


class LogitMse(Config):
    """Mean squared difference of centred logits."""

    kind: Literal["logit_mse"]


DivergenceConfig = Annotated[
    ForwardKl
    | ReverseKl
    | JensenShannon
    | SkewedKl
    | SkewedReverseKl
    | AdaptiveKl
    | TotalVariation
    | LogitMse,
    Field(discriminator="kind"),
]


class LossConfig(Config):
    """A divergence from the teacher's targets, mixed with cross-entropy on the labels."""

    divergence: DivergenceConfig = ForwardKl()
    """Divergence between teacher and student: forward_kl, reverse_kl, jensen_shannon,
    skewed_kl, skewed_reverse_kl, adaptive_kl, total_variation or logit_mse. Sampled targets
    (`varopt`, `sample`) take the forward KL alone."""

    kd_weight: Schedule = Schedule(kind="constant", start=1.0)
    """Weight w of the distillation loss at a step; cross-entropy gets 1 - w."""

    @model_validator(mode="after")
    def _weights_in_range(self) -> "LossConfig":
        for value in self.kd_weight.corners:
            if not 0 <= value <= 1:
                raise ValueError(f"kd_weight {value} is outside 0..1")
        return self


def status(kind: str, source: str) -> Status:
    """Return what the loss `kind` is on targets of `source`."""
    if source in _WHOLE:
        return "exact"
    if source in _SAMPLED:
        return "unbiased" if kind == "forward_kl" else "undefined"
    # The mean over the vocabulary needs every logit.
    return "undefined" if kind == "logit_mse" else "biased"


def check_alignable(source: str) -> None:
    """KdscaleError where targets of `source` cannot be carried over to another tokenizer."""
    if source == "topk":
        raise KdscaleError(
            "distill.tokenizer `student` needs the probability of every class of tokens, and the "
            "ghost bucket of 'topk' does not say to which of them its mass belongs.",
            "Use a cache of varopt, sample or full, or set distill.tokenizer to `teacher`.",
        )


def check_defined(kind: str, source: str) -> None:
    """KdscaleError where the loss `kind` is undefined on targets of `source`."""
    if status(kind, source) == "undefined":
        able = [name for name in SOURCES if status(kind, name) != "undefined"]
        raise KdscaleError(
            f"distill.loss.divergence {kind!r} is not defined on the targets of {source!r}: they "
            "do not hold the whole distribution.",
            f"Use `forward_kl`, or targets of {', '.join(able)}.",
        )
