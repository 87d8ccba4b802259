"""Objective of the student and of its baseline, and the values that are logged of it."""

import torch

from kdscale.cache.codecs import Codec
from kdscale.config import RunConfig
from kdscale.curriculum.schedule import value_at
from kdscale.distill.batches import MicroBatch
from kdscale.distill.layer_losses import AttentionLoss, HiddenLoss
from kdscale.distill.taid import LOSS as TAID_LOSS
from kdscale.distill.taid import InterpolatedTargets, Taid
from kdscale.distill.targets import (
    BatchTargets,
    CachedTargets,
    ClassifiedTargets,
    LayerOutputs,
    OnlineTeacher,
    at_positions,
)
from kdscale.losses.classes import ClassMap
from kdscale.losses.divergences import make_divergence
from kdscale.losses.fused import Objective, head_and_loss
from kdscale.models.forward import RowTensors
from kdscale.models.head import ModelWithHead
from kdscale.train.label_loss import EQUAL, LabelWeights, label_loss
from kdscale.train.loop import MicroBatchLoss


class LabelsLoss:
    """Cross-entropy on the labels alone: the baseline's loss."""

    def __init__(self, weights: LabelWeights = EQUAL) -> None:
        """`weights` are those of the labels."""
        self._weights = weights

    def metrics(self, step: int) -> dict[str, float]:
        """Return the scheduled values at `step`."""
        return {"kd_weight": 0.0}

    def close(self) -> None:
        """Hold nothing: see DistillationLoss."""

    def __call__(self, model: ModelWithHead, batch: MicroBatch, step: int) -> MicroBatchLoss:
        """Return the sums over the batch's targets."""
        loss = label_loss(model, batch.rows, self._weights).objective
        return loss, {"loss": loss.detach(), "ce_loss": loss.detach()}


class DistillationLoss:
    """w * distillation + (1 - w) * cross-entropy, with w scheduled over the steps."""

    def __init__(
        self,
        config: RunConfig,
        codec: Codec,
        teacher: OnlineTeacher | None,
        hidden: HiddenLoss | None = None,
        attention: AttentionLoss | None = None,
        weights: LabelWeights = EQUAL,
        classes: ClassMap | None = None,
    ) -> None:
        """Take targets from `teacher` or, without one, from the cache with `codec`.

        `hidden` and `attention` are the losses on layers that `config` asks for; they need a
        teacher. `weights` are those of the labels. `classes` are those of the ids of a student with
        its own tokenizer and of its teacher.
        """
        self._classes = classes
        self._weights = weights
        self._hidden = hidden
        self._attention = attention
        self._outputs = config.distill.online.layer_outputs
        self._loss = config.distill.loss
        self._steps = config.distill.training.steps
        self._cache_temperature = config.cache.temperature
        self._temperature = config.distill.online.temperature
        self._divergence = make_divergence(self._loss.divergence)
        self._codec = codec
        self._teacher = teacher
        taid = config.distill.online.taid
        self.taid = Taid(taid, self._steps) if taid is not None else None

    def metrics(self, step: int) -> dict[str, float]:
        """Return the scheduled values at `step`, the present one."""
        found = {"kd_weight": self._kd_weight(step), "temperature": self._temperature_at(step)}
        return found if self.taid is None else found | {"taid_t": self.taid.t}

    def close(self) -> None:
        """Free the memory of the online teacher, if there is one. Not called afterwards."""
        if self._teacher is not None:
            self._teacher.close()

    def __call__(self, model: ModelWithHead, batch: MicroBatch, step: int) -> MicroBatchLoss:
        """Return the sums over the batch's targets.

        Logged: `loss` is what is trained on, `ce_loss` the cross-entropy on the labels, and `kl`,
        or `divergence` where it is another one, the distance of the student from its teacher (but
        for the KL of sampled targets in sequences that are cut, or in other tokens than the
        teacher's); with TAID also the loss on its targets; of a student with its own tokenizer
        `target_share`, the positions with a target of the teacher's.
        """
        temperature = self._temperature_at(step)
        targets = self._targets(batch, temperature)
        hidden, layers = self._forward(model, batch.rows)
        labels = batch.rows.pick(batch.rows.labels)
        objective = Objective(self._kd_weight(step), temperature, self._divergence)
        found = head_and_loss(
            hidden, model.head, labels, targets.at, objective, self._weights.at(labels)
        )
        total = found.objective
        parts = {"ce_loss": found.cross_entropy}
        for name, (weight, value) in self._on_layers(model, layers, targets.layers).items():
            total = total + weight * value
            parts[name] = value.detach()
        parts["loss"] = total.detach()
        if batch.has_target is not None:
            parts["target_share"] = (batch.has_target & batch.rows.mask).sum()
        if self.taid is not None:
            parts[TAID_LOSS] = found.distillation
        if self._divergence is not None:
            return total, parts | {"divergence": found.distillation}
        kl = targets.kl(found.distillation)
        return total, parts if kl is None else parts | {"kl": kl}

    def _forward(self, model: ModelWithHead, rows: RowTensors) -> tuple[torch.Tensor, LayerOutputs]:
        """Return hidden states [P, D] for the head, and the outputs of layers for their losses."""
        hidden, layers = model.hidden_and_layers(
            rows.ids, rows.segments, self._outputs, rows.documents
        )
        return rows.pick(hidden), at_positions(layers, rows)

    def _on_layers(
        self, model: ModelWithHead, mine: LayerOutputs, theirs: LayerOutputs
    ) -> dict[str, tuple[float, torch.Tensor]]:
        """Return weight and sum of each loss on layers, by name."""
        found = {}
        if self._hidden is not None:
            value = self._hidden(model.projections, mine["hidden"], theirs["hidden"])
            found["hidden"] = (self._hidden.config.weight, value)
        if self._attention is not None:
            value = self._attention(mine["attention"], theirs["attention"])
            found["attention"] = (self._attention.config.weight, value)
        return found

    def _targets(self, batch: MicroBatch, temperature: float) -> BatchTargets:
        if self._teacher is not None:
            online = self._teacher.targets(batch.rows, temperature)
            return online if self.taid is None else InterpolatedTargets(online, self.taid.t)
        if self._classes is not None:
            return ClassifiedTargets.of(batch, self._codec, self._classes)
        return CachedTargets.of(batch, self._codec, temperature)

    def _kd_weight(self, step: int) -> float:
        return value_at(self._loss.kd_weight, step, self._steps)

    def _temperature_at(self, step: int) -> float:
        schedule = self._temperature
        if schedule is None:
            return self._cache_temperature
        return value_at(schedule, step, self._steps)
