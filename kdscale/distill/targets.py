"""Targets of a micro-batch, from the cache or from an online teacher: the same to the loss.

A batch's targets are a function of a slice of its positions, so that a distribution over the whole
vocabulary exists for a chunk of positions only. The entropy of the targets that were used is kept
on the way: it makes a KL of the soft cross-entropy.
"""

from collections.abc import Callable, Collection
from functools import partial
from typing import Protocol, Self

import torch
from transformers import PreTrainedModel

from kdscale.cache.codecs import Codec
from kdscale.cache.codecs.full import Full
from kdscale.config import RunConfig
from kdscale.config.training import AttentionChoice, ZeroConfig
from kdscale.data.rows.prepared import Prepared
from kdscale.distill.batches import MicroBatch
from kdscale.distributed.groups import RankGroup
from kdscale.distributed.rank import Rank
from kdscale.losses.classes import ClassMap, ClassTargets
from kdscale.losses.divergences import entropy_sum
from kdscale.losses.fused import ChunkTargets
from kdscale.models.attention import set_attention
from kdscale.models.attention_check import check_attention
from kdscale.models.forward import RowTensors
from kdscale.models.head import LayerOutput, ModelWithHead
from kdscale.models.hf_folder import ModelReference
from kdscale.models.load import load_config_of
from kdscale.models.release import release
from kdscale.models.sequence_check import SequenceSpec
from kdscale.models.sharded import load_teacher, teacher_group
from kdscale.train.batches import sequence_spec
from kdscale.types import Head, SparseTargets, Targets, TeacherLogits

LayerOutputs = dict[str, list[torch.Tensor]]
"""Tensors by name of the LayerOutput, then by layer."""


class BatchTargets(Protocol):
    """Targets of P positions."""

    layers: LayerOutputs
    """The teacher's outputs at these positions, [P, *] each; empty for a cache."""

    def at(self, part: slice, logits: Callable[[], torch.Tensor]) -> ChunkTargets:
        """Return the targets of some C of the positions; each position is asked for once.

        `logits` returns the student's there, [C, V] float32, not divided by the temperature.
        """
        ...

    def kl(self, distillation: torch.Tensor) -> torch.Tensor | None:
        """Return the KL of the student from its teacher, times T^2, over the positions so far.

        A sum, or None where it is not known. `distillation` is T^2 times the soft cross-entropy of
        the targets, a sum.
        """
        ...


class _Payload:
    """Payload of P positions, decoded where it is asked for.

    Sparse targets all at once: decoding is many small operations, which on a GPU take as long for
    256 positions as for all. Dense ones are too large for that.
    """

    def __init__(self, codec: Codec, payload: torch.Tensor) -> None:
        self._codec = codec
        self._payload = payload
        self._all: SparseTargets | None = None

    def at(self, part: slice) -> Targets:
        """Return the targets of some positions."""
        if self._all is None:
            if isinstance(self._codec, Full):
                return self._codec.decode(self._payload[part])
            found = self._codec.decode(self._payload)
            assert isinstance(found, SparseTargets)
            self._all = found
        ghost = self._all.ghost
        ghost = None if ghost is None else ghost[part]
        return SparseTargets(self._all.ids[part], self._all.probs[part], ghost)


class CachedTargets:
    """Targets that a codec kept."""

    def __init__(
        self,
        codec: Codec,
        payload: torch.Tensor,
        entropy: torch.Tensor | None,
        temperature: float,
    ) -> None:
        """Take `payload` [P, bytes a position] uint8 and the student's `temperature`.

        `entropy` is the teacher's own over all positions, a sum, where it is known.
        """
        self.layers: LayerOutputs = {}
        self._payload = _Payload(codec, payload)
        self._entropy = entropy
        self._temperature = temperature
        self._merged: torch.Tensor | None = None

    @classmethod
    def of(cls, batch: MicroBatch, codec: Codec, temperature: float) -> Self:
        """Return the targets of the positions of `batch` that count."""
        rows, entropy = batch.rows, batch.entropy
        if entropy is not None:
            entropy = (entropy * rows.mask.sum(dim=1)).sum()
        return cls(codec, rows.pick(batch.payload), entropy, temperature)

    def at(self, part: slice, logits: Callable[[], torch.Tensor]) -> Targets:
        """See BatchTargets."""
        targets = self._payload.at(part)
        if isinstance(targets, SparseTargets) and targets.ghost is not None:
            found = entropy_sum(targets)
            self._merged = found if self._merged is None else self._merged + found
        return targets

    def kl(self, distillation: torch.Tensor) -> torch.Tensor | None:
        """See BatchTargets. Unbiased by the teacher's own entropy where targets are sampled.

        With a ghost bucket the entropy is that of the listed ids and the bucket.
        """
        entropy = self._entropy if self._merged is None else self._merged
        return None if entropy is None else distillation - entropy * self._temperature**2


class ClassifiedTargets:
    """Targets that a codec kept, over the classes of a teacher's and a student's tokens."""

    def __init__(
        self, codec: Codec, payload: torch.Tensor, has_target: torch.Tensor, classes: ClassMap
    ) -> None:
        """Take `payload` [P, bytes a position] uint8, of which `has_target` [P] bool are targets.

        The others have the label alone.
        """
        self.layers: LayerOutputs = {}
        self._payload = _Payload(codec, payload)
        self._has_target = has_target
        self._classes = classes

    @classmethod
    def of(cls, batch: MicroBatch, codec: Codec, classes: ClassMap) -> Self:
        """Return the targets of the positions of `batch` that count."""
        pick = batch.rows.pick
        assert batch.has_target is not None
        return cls(codec, pick(batch.payload), pick(batch.has_target), classes)

    def at(self, part: slice, logits: Callable[[], torch.Tensor]) -> ClassTargets:
        """See BatchTargets."""
        return self._classes.targets(self._payload.at(part), self._has_target[part])

    def kl(self, distillation: torch.Tensor) -> None:
        """See BatchTargets. The entropy over the classes is not kept."""


class OnlineTeacher:
    """A teacher that runs over the student's sequences.

    Where it is sharded, every rank holds its head whole while a micro-batch lasts.
    """

    def __init__(
        self,
        reference: ModelReference,
        worker: Rank,
        zero: ZeroConfig,
        spec: SequenceSpec,
        outputs: Collection[LayerOutput] = (),
        attention: AttentionChoice = "auto",
        group: RankGroup | None = None,
    ) -> None:
        """Load the teacher; the `outputs` of its layers come with its targets.

        Where `zero` shards it, the ranks of `group` hold it together, or all. `attention` is its
        kernel where attention weights are not among them. Raises KdscaleError where it lacks the
        outputs or the kernel, or misreads such sequences.
        """

        def wrap(model: PreTrainedModel) -> ModelWithHead:
            gives_attention = "attention" in outputs
            if not gives_attention:
                set_attention(model, attention, worker.device, packs=spec.packs)
            return ModelWithHead(model, spec.outputs, gives_attention=gives_attention)

        self._outputs = outputs
        self._is_sharded = zero.stage == 3
        folder = reference.local()
        revision = reference.revision
        self._model = load_teacher(folder, worker, zero, revision, group=group, wrap=wrap)
        with torch.no_grad():
            self._model(ModelWithHead.detect_head, worker.device)
            self._model(check_attention, worker.device)
            self._model(ModelWithHead.check_sequences, spec)

    @torch.no_grad()
    def targets(self, rows: RowTensors, temperature: float) -> "OnlineTargets":
        """Return softmax(logits / temperature) at the positions of `rows` that count.

        With the layers' outputs there.
        """
        hidden, layers, head = self._model(_forward, rows, self._outputs, self._is_sharded)
        return OnlineTargets(head, rows.pick(hidden), temperature, at_positions(layers, rows))

    def close(self) -> None:
        """Free the teacher's memory. Of all ranks together."""
        release(self._model)


def open_online_teacher(
    config: RunConfig, teacher: ModelReference | None, worker: Rank, prepared: Prepared
) -> OnlineTeacher | None:
    """Load the teacher beside its student, where `config` asks for it."""
    if config.distill.targets == "cache":
        return None
    assert teacher is not None
    online = config.distill.online
    spec = sequence_spec(config, prepared, config.distill.training.micro_batch_size)
    zero = ZeroConfig.for_teacher(online.teacher_sharding)
    group = None
    if zero.stage == 3:
        shape = partial(load_config_of, teacher.local(), teacher.revision)
        group = teacher_group(online.teacher_group, config.distill.workers, worker, shape)
    attention = config.teacher.attention
    return OnlineTeacher(teacher, worker, zero, spec, online.layer_outputs, attention, group)


class OnlineTargets:
    """Dense targets, a chunk at a time."""

    def __init__(
        self,
        head: Head,
        hidden: torch.Tensor,
        temperature: float,
        layers: LayerOutputs,
    ) -> None:
        """Take the teacher's `head` and its input `hidden` [P, D]."""
        self.layers = layers
        self.temperature = temperature
        self._head = head
        self._hidden = hidden
        self._entropy = torch.zeros((), device=hidden.device)

    def at(self, part: slice, logits: Callable[[], torch.Tensor]) -> TeacherLogits:
        """See BatchTargets."""
        return TeacherLogits(self.logits(part), self.temperature, self._add_entropy)

    def logits(self, part: slice) -> torch.Tensor:
        """Return the teacher's logits at some C of the positions, [C, V] of any float type."""
        return self._head.raw_logits(self._hidden[part])

    def _add_entropy(self, entropy: torch.Tensor) -> None:
        self._entropy = self._entropy + entropy

    def kl(self, distillation: torch.Tensor) -> torch.Tensor:
        """See BatchTargets."""
        return distillation - self._entropy * self.temperature**2


def at_positions(layers: LayerOutputs, rows: RowTensors) -> LayerOutputs:
    """Return the layers' outputs, [B, T, *] each, at the positions of `rows` that count, [P, *]."""
    return {name: [rows.pick(each) for each in found] for name, found in layers.items()}


def _forward(
    model: ModelWithHead, rows: RowTensors, outputs: Collection[LayerOutput], is_sharded: bool
) -> tuple[torch.Tensor, LayerOutputs, Head]:
    """Return hidden states [B, T, D], layers' outputs, and the head (whole in here only)."""
    hidden, layers = model.hidden_and_layers(rows.ids, rows.segments, outputs, rows.documents)
    # Gathered here, once: chunk by chunk, ranks with fewer targets would not be there to take part.
    return hidden, layers, model.head.copy() if is_sharded else model.head
