"""The targets of a micro-batch, from the cache or from a live teacher: the same to the loss.

A batch's targets are a function of a slice of its positions, so that a distribution over the whole
vocabulary exists for a chunk of positions only. The entropy of what was handed out is kept on the
way: it makes a KL of the soft cross-entropy.
"""

from collections.abc import Sequence
from typing import Protocol

import torch
from transformers import PreTrainedModel

from kdscale.cache.codecs import Codec
from kdscale.config.training import ZeroConfig
from kdscale.losses.divergences import entropy_sum
from kdscale.models.folder import ModelReference
from kdscale.models.head import TrainedModel
from kdscale.models.sharded import load_teacher, share_parameter
from kdscale.types import DenseTargets, SparseTargets, Targets
from kdscale.workers import Worker


class BatchTargets(Protocol):
    """The targets of P positions."""

    def at(self, part: slice) -> Targets:
        """Those of some of the positions; each is asked for once."""
        ...

    def entropy(self) -> torch.Tensor | None:
        """Sum of the teacher's entropies over the positions handed out, nats; a scalar. None where
        it is not known."""
        ...


class CachedTargets:
    """What a codec kept."""

    def __init__(self, codec: Codec, payload: torch.Tensor, entropy: torch.Tensor | None) -> None:
        """payload: [P, bytes a position] uint8; entropy: the teacher's own over all positions."""
        self._codec = codec
        self._payload = payload
        self._entropy = entropy
        self._merged: torch.Tensor | None = None

    def at(self, part: slice) -> Targets:
        """See BatchTargets."""
        targets = self._codec.decode(self._payload[part])
        if isinstance(targets, SparseTargets) and targets.ghost is not None:
            found = entropy_sum(targets)
            self._merged = found if self._merged is None else self._merged + found
        return targets

    def entropy(self) -> torch.Tensor | None:
        """The teacher's own, which leaves the KL unbiased where targets are sampled; with a ghost
        bucket, that of the listed ids and the bucket."""
        return self._entropy if self._merged is None else self._merged


class LiveTeacher:
    """A teacher that runs over the student's rows."""

    def __init__(
        self,
        reference: ModelReference,
        worker: Worker,
        zero: ZeroConfig,
        vocab_size: int,
        *,
        with_layers: bool = False,
    ) -> None:
        def wrap(model: PreTrainedModel) -> TrainedModel:
            trained = TrainedModel(model, vocab_size)
            if zero.stage == 3:
                share_parameter(trained, trained.head_weight)
            return trained

        self._with_layers = with_layers
        folder = reference.local()
        self._model = load_teacher(folder, worker, zero, reference.revision, wrap=wrap)
        with torch.no_grad():
            self._model(TrainedModel.check_head, worker.device)

    @torch.no_grad()
    def targets(
        self, ids: torch.Tensor, segments: torch.Tensor, mask: torch.Tensor, temperature: float
    ) -> "LiveTargets":
        """Softmax of the logits over `temperature` where `mask` [B, T] is True; and the layers'
        states there, where they are wanted."""
        if not self._with_layers:
            return LiveTargets(self, self._model(_hidden, ids, segments)[mask], temperature)
        hidden, layers = self._model(TrainedModel.hidden_and_layers, ids, segments)
        return LiveTargets(self, hidden[mask], temperature, [layer[mask] for layer in layers])

    @torch.no_grad()
    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """[C, V] float32 of hidden states [C, D]."""
        found: torch.Tensor = self._model(_logits, hidden)
        return found


class LiveTargets:
    """Dense targets, a chunk at a time."""

    def __init__(
        self,
        teacher: LiveTeacher,
        hidden: torch.Tensor,
        temperature: float,
        layers: Sequence[torch.Tensor] = (),
    ) -> None:
        self.layers = layers
        self._teacher = teacher
        self._hidden = hidden
        self._temperature = temperature
        self._entropy = torch.zeros((), device=hidden.device)

    def at(self, part: slice) -> Targets:
        """See BatchTargets."""
        logits = self._teacher.logits(self._hidden[part])
        targets = DenseTargets(torch.log_softmax(logits / self._temperature, dim=-1))
        self._entropy = self._entropy + entropy_sum(targets)
        return targets

    def entropy(self) -> torch.Tensor:
        """See BatchTargets."""
        return self._entropy


def _hidden(model: TrainedModel, ids: torch.Tensor, segments: torch.Tensor) -> torch.Tensor:
    return model.hidden(ids, segments)


def _logits(model: TrainedModel, hidden: torch.Tensor) -> torch.Tensor:
    return model.head.logits(hidden)
