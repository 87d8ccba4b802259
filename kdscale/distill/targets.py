"""The targets of a micro-batch, from the cache or from an online teacher: the same to the loss.

A batch's targets are a function of a slice of its positions, so that a distribution over the whole
vocabulary exists for a chunk of positions only. The entropy of what was handed out is kept on the
way: it makes a KL of the soft cross-entropy.
"""

from collections.abc import Collection
from typing import Protocol

import torch
from transformers import PreTrainedModel

from kdscale.cache.codecs import Codec
from kdscale.config.training import ZeroConfig
from kdscale.distributed.rank import Rank
from kdscale.losses.divergences import entropy_sum
from kdscale.models.attention import check_attention
from kdscale.models.forward import RowTensors
from kdscale.models.head import LayerOutput, ModelWithHead
from kdscale.models.hf_folder import ModelReference
from kdscale.models.sequence_check import SequenceSpec
from kdscale.models.sharded import load_teacher
from kdscale.types import DenseTargets, Head, SparseTargets, Targets

LayerOutputs = dict[str, list[torch.Tensor]]
"""By name of the LayerOutput, then by layer."""


class BatchTargets(Protocol):
    """The targets of P positions."""

    layers: LayerOutputs
    """The teacher's at these positions, [P, *] each; none of a cache."""

    def at(self, part: slice, logits: torch.Tensor) -> Targets:
        """Those of some C of the positions, where the student's logits are `logits` [C, V]
        float32, not divided by the temperature; each position is asked for once."""
        ...

    def kl(self, distillation: torch.Tensor) -> torch.Tensor | None:
        """KL of the student from its teacher, times T^2, summed over the positions handed out; None
        where it is not known. `distillation` is T^2 times the soft cross-entropy of the targets, a
        sum."""
        ...


class CachedTargets:
    """What a codec kept."""

    def __init__(
        self,
        codec: Codec,
        payload: torch.Tensor,
        entropy: torch.Tensor | None,
        temperature: float,
    ) -> None:
        """payload: [P, bytes a position] uint8; entropy: the teacher's own over all positions, a
        sum, where it is known; temperature: of the student."""
        self.layers: LayerOutputs = {}
        self._codec = codec
        self._payload = payload
        self._entropy = entropy
        self._temperature = temperature
        self._merged: torch.Tensor | None = None

    def at(self, part: slice, logits: torch.Tensor) -> Targets:
        """See BatchTargets."""
        targets = self._codec.decode(self._payload[part])
        if isinstance(targets, SparseTargets) and targets.ghost is not None:
            found = entropy_sum(targets)
            self._merged = found if self._merged is None else self._merged + found
        return targets

    def kl(self, distillation: torch.Tensor) -> torch.Tensor | None:
        """See BatchTargets. The teacher's own entropy leaves it unbiased where targets are sampled;
        with a ghost bucket it is that of the listed ids and the bucket."""
        entropy = self._entropy if self._merged is None else self._merged
        return None if entropy is None else distillation - entropy * self._temperature**2


class OnlineTeacher:
    """A teacher that runs over the student's rows. Where it is sharded, every rank holds its head
    whole while a micro-batch lasts."""

    def __init__(
        self,
        reference: ModelReference,
        worker: Rank,
        zero: ZeroConfig,
        kind: SequenceSpec,
        outputs: Collection[LayerOutput] = (),
    ) -> None:
        """`outputs` of its layers come with its targets of rows of this `kind`. KdscaleError where
        it has not got them, or takes such rows for something else."""

        def wrap(model: PreTrainedModel) -> ModelWithHead:
            return ModelWithHead(model, kind.outputs, gives_attention="attention" in outputs)

        self._outputs = outputs
        self._is_sharded = zero.stage == 3
        folder = reference.local()
        self._model = load_teacher(folder, worker, zero, reference.revision, wrap=wrap)
        with torch.no_grad():
            self._model(ModelWithHead.detect_head, worker.device)
            self._model(check_attention, worker.device)
            self._model(ModelWithHead.check_sequences, kind)

    @torch.no_grad()
    def targets(self, rows: RowTensors, temperature: float) -> "OnlineTargets":
        """Softmax of the logits over `temperature` at the positions of `rows` that count, and the
        layers' outputs there."""
        hidden, layers, head = self._model(
            _forward, rows.ids, rows.segments, self._outputs, self._is_sharded
        )
        return OnlineTargets(head, hidden[rows.mask], temperature, at_positions(layers, rows.mask))


class OnlineTargets:
    """Dense targets, a chunk at a time."""

    def __init__(
        self,
        head: Head,
        hidden: torch.Tensor,
        temperature: float,
        layers: LayerOutputs,
    ) -> None:
        """`hidden` [P, D] is what the teacher's `head` takes."""
        self.layers = layers
        self.temperature = temperature
        self._head = head
        self._hidden = hidden
        self._entropy = torch.zeros((), device=hidden.device)

    def at(self, part: slice, logits: torch.Tensor) -> DenseTargets:
        """See BatchTargets."""
        own = self._head.logits(self._hidden[part])
        targets = DenseTargets(torch.log_softmax(own / self.temperature, dim=-1))
        self._entropy = self._entropy + entropy_sum(targets)
        return targets

    def kl(self, distillation: torch.Tensor) -> torch.Tensor:
        """See BatchTargets."""
        return distillation - self._entropy * self.temperature**2


def at_positions(layers: LayerOutputs, mask: torch.Tensor) -> LayerOutputs:
    """What layers give, [B, T, *] each, where `mask` [B, T] is True: [P, *]."""
    return {name: [each[mask] for each in found] for name, found in layers.items()}


def _forward(
    model: ModelWithHead,
    ids: torch.Tensor,
    segments: torch.Tensor,
    outputs: Collection[LayerOutput],
    is_sharded: bool,
) -> tuple[torch.Tensor, LayerOutputs, Head]:
    """Hidden states [B, T, D], layers' outputs, and the head, which is whole only in here."""
    hidden, layers = model.hidden_and_layers(ids, segments, outputs)
    # Gathered here, once: chunk by chunk, ranks with fewer targets would not be there to take part.
    return hidden, layers, model.head.copy() if is_sharded else model.head
