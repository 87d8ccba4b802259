"""What a step of the student minimises, and what is logged of it."""

import torch

from kdscale.cache.codecs import Codec
from kdscale.config import RunConfig
from kdscale.curriculum.schedule import value_at
from kdscale.losses.divergences import make_divergence
from kdscale.losses.fused import Objective, head_and_loss
from kdscale.models.forward import next_token_labels
from kdscale.models.head import TrainedModel
from kdscale.student.hidden import HiddenLoss
from kdscale.student.steps import MicroBatch
from kdscale.student.targets import BatchTargets, CachedTargets, LiveTargets, LiveTeacher
from kdscale.train.loop import LossSums


class LabelsLoss:
    """Cross-entropy on the labels alone: the control's."""

    def metrics(self, step: int) -> dict[str, float]:
        """What is scheduled, at `step`."""
        return {"kd_weight": 0.0}

    def __call__(self, model: TrainedModel, batch: MicroBatch, step: int) -> LossSums:
        """Sums over the batch's targets."""
        hidden = model.hidden(batch.ids, batch.segments)[batch.mask]
        labels = next_token_labels(batch.ids)[batch.mask]
        loss = head_and_loss(hidden, model.head, labels).objective
        return loss, {"loss": loss.detach(), "ce_loss": loss.detach()}


class DistillationLoss:
    """w * distillation + (1 - w) * cross-entropy, with w scheduled over the steps."""

    def __init__(
        self,
        config: RunConfig,
        codec: Codec,
        teacher: LiveTeacher | None,
        hidden: HiddenLoss | None = None,
    ) -> None:
        """Targets are those of `teacher` or, without one, of the cache with `codec`; `hidden` needs
        a teacher that gives its layers."""
        self._hidden = hidden
        self._loss = config.distill.loss
        self._steps = config.distill.training.steps
        self._cache_temperature = config.cache.temperature
        self._temperature = config.distill.live.temperature
        self._divergence = make_divergence(self._loss.divergence)
        self._codec = codec
        self._teacher = teacher

    def metrics(self, step: int) -> dict[str, float]:
        """What is scheduled, at `step`."""
        return {"kd_weight": self._kd_weight(step), "temperature": self._temperature_at(step)}

    def __call__(self, model: TrainedModel, batch: MicroBatch, step: int) -> LossSums:
        """Sums over the batch's targets. Logged: `loss` is what is trained on, `ce_loss` the
        cross-entropy on the labels, and `kl`, or `divergence` where it is another one, how far the
        student is from its teacher (but for the KL of sampled targets in rows that are cut)."""
        temperature = self._temperature_at(step)
        targets = self._targets(batch, temperature)
        hidden, on_layers = self._states(model, batch, targets)
        labels = next_token_labels(batch.ids)[batch.mask]
        objective = Objective(self._kd_weight(step), temperature, self._divergence)
        found = head_and_loss(hidden, model.head, labels, targets.at, objective)
        total = found.objective
        parts = {"ce_loss": found.cross_entropy}
        if on_layers is not None and self._hidden is not None:
            total = total + self._hidden.config.weight * on_layers
            parts["hidden"] = on_layers.detach()
        parts["loss"] = total.detach()
        if self._divergence is not None:
            return total, parts | {"divergence": found.distillation}
        entropy = targets.entropy()
        if entropy is None:
            return total, parts
        # What was summed is a soft cross-entropy.
        kl = found.distillation - entropy * temperature**2
        return total, parts | {"kl": kl}

    def _states(
        self, model: TrainedModel, batch: MicroBatch, targets: BatchTargets
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Hidden states [P, D] for the head, and the loss on all layers, where there is one."""
        if self._hidden is None:
            return model.hidden(batch.ids, batch.segments)[batch.mask], None
        assert isinstance(targets, LiveTargets)
        hidden, layers = model.hidden_and_layers(batch.ids, batch.segments)
        own = [layer[batch.mask] for layer in layers]
        return hidden[batch.mask], self._hidden(model.projections, own, targets.layers)

    def _targets(self, batch: MicroBatch, temperature: float) -> BatchTargets:
        if self._teacher is not None:
            return self._teacher.targets(batch.ids, batch.segments, batch.mask, temperature)
        entropy = batch.entropy
        if entropy is not None:
            entropy = (entropy * batch.mask.sum(dim=1)).sum()
        return CachedTargets(self._codec, batch.payload[batch.mask], entropy)

    def _kd_weight(self, step: int) -> float:
        return value_at(self._loss.kd_weight, step, self._steps)

    def _temperature_at(self, step: int) -> float:
        schedule = self._temperature
        if schedule is None:
            return self._cache_temperature
        return value_at(schedule, step, self._steps)
