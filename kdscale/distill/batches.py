"""Batches of distillation: what the cache has of some sequences, as tensors on the device."""

from dataclasses import dataclass, field, replace
from typing import Self

import numpy as np
import torch

from kdscale.cache.codecs import Codec
from kdscale.cache.rows import CachedRows
from kdscale.curriculum.length import shorten
from kdscale.distill.aligned_reader import AlignedCachedRows
from kdscale.models.documents import copy_to, document_positions
from kdscale.models.forward import RowTensors, row_tensors
from kdscale.types import Rows, Targets, labels_of

IGNORED = -100
"""Label of a position that does not count, as `torch.nn.functional.cross_entropy` has it."""


@dataclass(frozen=True)
class MicroBatch:
    """Sequences of one forward with what the cache has of them."""

    rows: RowTensors  # m of them
    payload: torch.Tensor  # [m, T, bytes_per_position] uint8
    entropy: torch.Tensor | None
    """[m] float32: mean teacher entropy over the sequence's targets, nats; None where sequences are
    cut, as it is not known of a part, and where they are in other tokens than the teacher's."""

    has_target: torch.Tensor | None = field(default=None, kw_only=True)
    """[m, T] bool: where the payload is of the position; None: wherever one counts. A student with
    its own tokenizer learns from the label alone elsewhere."""


@dataclass(frozen=True)
class Batch(MicroBatch):
    """One rank's sequences of one forward, from a cache.

    All tensors are [B, T] and on one device; B may be less than the loader's batch size at the end
    of an epoch. A sequence that only fills up a rank's share has an empty loss mask.

    It is no mapping on purpose: `model(**batch)` would let packed documents see each other, and a
    transformers model shifts labels that are shifted already. See `kdscale.model_inputs`.
    """

    codec: Codec
    temperature: float
    """Temperature of the cache's distributions, and so of the student's beside them."""

    vocab_size: int
    """V: ids of the tokenizer. Logits past them belong to padding and count in nothing."""

    num_targets: int
    """Positions that count in a loss: those where `loss_mask` is True."""

    num_labels: int
    """Those of them whose label is known: all, in a language model's cache."""

    indices: np.ndarray
    """Numbers in the cache of the sequences of all ranks' batches, in order; rank r has every
    `world_size`-th of them from the r-th on."""

    @property
    def input_ids(self) -> torch.Tensor:
        """Tokens, int64."""
        return self.rows.ids

    @property
    def segment_ids(self) -> torch.Tensor:
        """Number of the document that a position belongs to, int64, from 1; 0 is padding."""
        return self.rows.segments

    @property
    def position_ids(self) -> torch.Tensor:
        """Position of a token in its document, int64."""
        return document_positions(self.rows.segments)

    @property
    def loss_mask(self) -> torch.Tensor:
        """True at positions whose prediction counts, bool."""
        return self.rows.mask

    @property
    def labels(self) -> torch.Tensor:
        """Token that each position predicts, int64, already shifted; -100 where none counts."""
        return self.rows.labels.where(self.rows.known, IGNORED)

    @property
    def targets(self) -> Targets:
        """Teacher's distributions at the P positions of the loss mask, in row-major order.

        SparseTargets (`ids`, `probs` [P, K], and `ghost` [P] of top-k), or DenseTargets
        (`log_probs` [P, V]) of the codec `full`. Decoded at every access; `distillation_loss`
        decodes a part at a time.
        """
        return self.codec.decode(self.rows.pick(self.payload))

    def to(self, device: torch.device | str) -> Self:
        """Return the batch on `device`."""
        rows, documents = self.rows, self.rows.documents
        if documents is not None:
            documents = documents._replace(bounds=documents.bounds.to(device))
        at, entropy, has_target = (
            None if each is None else each.to(device)
            for each in (rows.at, self.entropy, self.has_target)
        )
        rows = rows.each(lambda tensor: tensor.to(device))._replace(at=at, documents=documents)
        payload = self.payload.to(device)
        return replace(self, rows=rows, payload=payload, entropy=entropy, has_target=has_target)


def to_device(
    cached: CachedRows, valid: np.ndarray, device: torch.device, length: int | None = None
) -> MicroBatch:
    """Return `cached` as tensors. Sequences that are not `valid` ([m] bool) get an empty mask.

    Of every sequence the first `length` positions, all if not given; the last of those that are cut
    has no target.
    """
    rows, payload, entropy = cached.rows, cached.payload, copy_to(cached.entropy, device)
    has_target = cached.has_target if isinstance(cached, AlignedCachedRows) else None
    is_cut = length is not None and length < rows.input_ids.shape[1]
    if is_cut:
        assert length is not None
        rows, payload = _first(rows, length), payload[:, :length]
        has_target = None if has_target is None else has_target[:, :length]
    made = row_tensors(rows, device, valid)
    if has_target is not None:
        target = copy_to(has_target, device)
        return MicroBatch(made, copy_to(payload, device), None, has_target=target)
    return MicroBatch(made, copy_to(payload, device), None if is_cut else entropy)


def _first(rows: Rows, length: int) -> Rows:
    """Return the first `length` positions of each of `rows`, with the labels that they have."""
    mask, ids, segments, labels = shorten(
        length, rows.loss_mask, rows.input_ids, rows.segment_ids, labels_of(rows)
    )
    return replace(rows, loss_mask=mask, input_ids=ids, segment_ids=segments, labels=labels)
