"""Distillation loss of a batch, and what a transformers model needs for its hidden states."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch

from kdscale.config.load import parse_settings
from kdscale.config.loss import DivergenceConfig, check_defined
from kdscale.distill.batches import Batch
from kdscale.distill.targets import CachedTargets
from kdscale.errors import KdscaleError
from kdscale.losses.divergences import make_divergence
from kdscale.losses.fused import Objective, head_and_loss
from kdscale.models import forward
from kdscale.models.head import is_plain, output_head
from kdscale.types import Head


@dataclass(frozen=True)
class LossParts:
    """Sums over a batch's targets, float32 scalars in nats; only `objective` has a gradient."""

    objective: torch.Tensor
    """kd_weight times the distillation loss, and the rest of the weight times cross-entropy."""

    cross_entropy: torch.Tensor
    """On the labels."""

    distillation: torch.Tensor
    """Divergence of the student from its teacher, times the squared temperature; of the forward KL
    the soft cross-entropy, which is larger by the teacher's entropy."""

    kl: torch.Tensor | None
    """Forward KL times the squared temperature; None with another divergence."""


def model_inputs(model: torch.nn.Module, batch: Batch) -> dict[str, Any]:
    """Return the arguments of a forward of a transformers `model`, or of its body, for `batch`.

    They keep packed documents apart: `position_ids` that start again with every document, and the
    attention mask that transformers makes of them for the model's attention implementation, one for
    each kind of its layers (full, sliding window, chunks); FlashAttention gets the bounds of
    documents in its place. Where every sequence is one document there is no mask, and the model
    runs its own causal attention, which is faster. `model` may be inside of DistributedDataParallel
    or an engine. `kdscale run` computes with the same arguments.
    """
    rows = batch.rows
    return forward.model_inputs(model, rows.ids, rows.segments, rows.documents)


def distillation_loss(
    hidden: torch.Tensor,
    head: torch.nn.Module | Head,
    batch: Batch,
    *,
    kd_weight: float = 1.0,
    divergence: str | Mapping[str, Any] = "forward_kl",
    num_targets: float | torch.Tensor | None = None,
    label_weights: torch.Tensor | None = None,
    config: Any | None = None,
) -> torch.Tensor:
    """Return the mean loss over the targets of `batch`, a float32 scalar to differentiate.

        hidden = model.model(**kdscale.model_inputs(model, batch)).last_hidden_state
        kdscale.distillation_loss(hidden, model.lm_head, batch, kd_weight=0.9).backward()

    Head and loss are computed together, a few hundred positions at a time: logits of the whole
    batch never exist. The student is softened by the temperature of the cache.

    Args:
        hidden: What the head takes: [B, T, D], or [P, D] at the P positions of the loss mask, in
            any float type.
        head: Linear map from hidden states to logits, such as `model.lm_head`; a transformers
            model, whose head is then taken with the scale and soft cap of its config; or a
            `kdscale.Head`. Rows past the vocabulary are padding and count in nothing.
        batch: Sequences that `hidden` is of.
        kd_weight: Weight of the distillation loss; cross-entropy on the labels has the rest.
        divergence: Kind in `distill.loss.divergence`, or its fields with `kind` among them.
            Sampled targets (`varopt`, `sample`) take `forward_kl` alone.
        num_targets: Divisor of the sums, the batch's own targets if not given. For accumulation
            over micro-batches it is the targets of all of them together; for a gradient that is
            then averaged over ranks, those of all ranks divided by the number of ranks.
        label_weights: [B, T] or [P], factors of the cross-entropy of each label.
        config: Config of the model of a linear `head`, for its scale and soft cap (Gemma, Cohere,
            Granite).

    Raises:
        KdscaleError: The divergence is not defined on the cache's targets, or the head is not a
            linear map of the vocabulary.
        ValueError: Shapes do not fit each other.
    """
    parts = loss_parts(
        hidden,
        head,
        batch,
        kd_weight=kd_weight,
        divergence=divergence,
        label_weights=label_weights,
        config=config,
    )
    return parts.objective / (max(1, batch.num_targets) if num_targets is None else num_targets)


def loss_parts(
    hidden: torch.Tensor,
    head: torch.nn.Module | Head,
    batch: Batch,
    *,
    kd_weight: float = 1.0,
    divergence: str | Mapping[str, Any] = "forward_kl",
    label_weights: torch.Tensor | None = None,
    config: Any | None = None,
) -> LossParts:
    """Return what `distillation_loss` is made of, not divided by anything; see there."""
    mask = batch.loss_mask
    if hidden.dim() == 3:
        if hidden.shape[:2] != mask.shape:
            raise ValueError(
                f"hidden states {tuple(hidden.shape)} are not of a batch {tuple(mask.shape)}"
            )
        hidden = batch.rows.pick(hidden)
    settings = check_loss(kd_weight, divergence, str(batch.codec.describe()["kind"]))
    objective = Objective(kd_weight, batch.temperature, make_divergence(settings))
    targets = CachedTargets.of(batch, batch.codec, batch.temperature)
    found = head_and_loss(
        hidden,
        head if isinstance(head, Head) else _head(head, batch.vocab_size, config),
        batch.rows.pick(batch.rows.labels),
        targets.at,
        objective,
        _weights(batch, label_weights),
    )
    kl = targets.kl(found.distillation) if settings.kind == "forward_kl" else None
    return LossParts(found.objective, found.cross_entropy, found.distillation, kl)


def check_loss(
    kd_weight: float, divergence: str | Mapping[str, Any], codec: str
) -> DivergenceConfig:
    """Return the config of `divergence`. Raises KdscaleError where it is not defined on `codec`."""
    if not 0 <= kd_weight <= 1:
        raise KdscaleError(f"kd_weight is {kd_weight}.", "Give a weight from 0 to 1.")
    kind = divergence if isinstance(divergence, str) else tuple(divergence.items())
    settings = _divergence(kind)
    check_defined(settings.kind, codec)
    return settings


@cache
def _divergence(given: str | tuple[tuple[str, Any], ...]) -> DivergenceConfig:
    fields = {"kind": given} if isinstance(given, str) else dict(given)
    found: DivergenceConfig = parse_settings(DivergenceConfig, fields, f"divergence {fields}")
    return found


def _weights(batch: Batch, given: torch.Tensor | None) -> torch.Tensor | None:
    """Return [P] float32, 0 where a label is not known; None where every one counts 1."""
    pick = batch.rows.pick
    known = None if batch.num_labels == batch.num_targets else pick(batch.rows.known).float()
    if given is None:
        return known
    weights = (pick(given) if given.dim() == 2 else given).float()
    return weights if known is None else weights * known


def _head(module: torch.nn.Module, vocab_size: int, config: Any | None) -> Head:
    """Return the head in `module`: a linear map, or a transformers model that ends in one."""
    output: Any = module
    if hasattr(output, "get_output_embeddings"):
        output, config = output.get_output_embeddings(), getattr(output, "config", None)
    if output is None or not is_plain(output):
        raise KdscaleError(
            f"{type(output if output is not None else module).__name__} is no plain linear map "
            "from hidden states to logits: it has other parameters than weight and bias.",
            "Give the model's logits in place of hidden states, with the head "
            f"kdscale.Head(None, None, {vocab_size}).",
        )
    weight: torch.Tensor = output.weight
    if weight.dim() != 2:
        raise KdscaleError(
            f"The head's weight has the shape {tuple(weight.shape)}: ZeRO-3 has sharded it.",
            "Compute the loss inside of the engine's forward, as "
            "kdscale.integrations.transformers.DistillationTrainer does.",
        )
    if len(weight) < vocab_size:
        raise KdscaleError(
            f"The head has {len(weight):,} outputs, the cache's tokenizer {vocab_size:,} ids.",
            "Train a model of the teacher's tokenizer, or resize its embeddings.",
        )
    return output_head(output, vocab_size, config)
