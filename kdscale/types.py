"""Types that all packages share.

Shape legend, used in every docstring:
    R  sequences of a data set or file             B  sequences in a batch
    T  positions in a sequence                     P  positions, flattened over sequences
    V  vocabulary, padding included                K  ids that a codec keeps at a position

Position i of a sequence stands for its label: its logits predict it, `loss_mask[i]` says whether
that prediction counts, and the cache holds the teacher's distribution of it. For a causal language
model the label is token i + 1, given tokens 0..i; for a masked one the token that stood at i; a
sequence to be classified has one label, at position 0.
"""

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Protocol

import numpy as np
import torch


@dataclass(frozen=True)
class Rows:
    """Sequences of tokens of one length, on the host, one a row.

    `segment_ids` number the documents packed in a sequence from 1; 0 is padding. Attention never
    crosses from one segment to another.
    """

    sample_ids: np.ndarray  # [R, 16] uint8: xxh3_128 of the row's content
    input_ids: np.ndarray  # [R, T] int32
    segment_ids: np.ndarray  # [R, T] int32
    loss_mask: np.ndarray  # [R, T] bool: True at i where token i + 1 is a target
    byte_counts: np.ndarray  # [R] float64: UTF-8 bytes of text that the row's targets stand for
    labels: np.ndarray | None = None
    """[R, T] int32 where the loss mask is True, -1 where a label is not known. None: every label is
    the next token."""

    def __len__(self) -> int:
        return len(self.input_ids)

    def part(self, part: slice) -> "Rows":
        """Return consecutive sequences, not copied."""
        own = {field.name: getattr(self, field.name) for field in fields(self)}
        return Rows(**{name: array[part] for name, array in own.items() if array is not None})

    def take(self, indices: np.ndarray) -> "Rows":
        """Return the sequences at `indices` ([B] integers), in that order."""
        return Rows(
            self.sample_ids[indices],
            self.input_ids[indices],
            self.segment_ids[indices],
            self.loss_mask[indices],
            self.byte_counts[indices],
            None if self.labels is None else self.labels[indices],
        )


def labels_of(rows: Rows) -> np.ndarray:
    """Return the label of every position that the loss mask counts, [R, T] int32.

    A sequence without labels has the next tokens; the last position wraps round, and no loss mask
    counts it.
    """
    return np.roll(rows.input_ids, -1, axis=1) if rows.labels is None else rows.labels


@dataclass(frozen=True)
class SparseTargets:
    """A target distribution that is non-zero at K ids of each position.

    Where `ghost` is given, it is the mass of all ids not listed, as one bucket, and no id stands
    twice. Where it is None, the probabilities sum to 1, and those of an id that stands more than
    once add up.
    """

    ids: torch.Tensor  # [..., K] int64
    probs: torch.Tensor  # [..., K] float32
    ghost: torch.Tensor | None = None  # [...] float32


@dataclass(frozen=True)
class DenseTargets:
    """A target distribution over the whole vocabulary."""

    log_probs: torch.Tensor  # [..., V] float32, normalised; -inf at padding ids


Targets = SparseTargets | DenseTargets


@dataclass(frozen=True)
class TeacherLogits:
    """Logits of a teacher, whose softmax at a temperature is the target."""

    logits: torch.Tensor  # [C, V], of any float type
    temperature: float
    add: Callable[[torch.Tensor], None]
    """Called by who makes the softmax, with a sum in nats, a scalar: of the entropies of the
    teacher's distributions or, with `share`, of the KL of the student's from these."""

    share: float | None = None
    """Where it is given, the target is softmax((1 - share) z_S + share z_T) of logits z divided by
    the temperature, the student's and the teacher's; no gradient goes through it."""

    def log_probs(self) -> torch.Tensor:
        """Return the teacher's log-probabilities, [C, V] float32."""
        logits = self.logits.float()
        if self.temperature != 1.0:
            logits = logits / self.temperature
        return torch.log_softmax(logits, dim=-1)


@dataclass(frozen=True)
class Head:
    """Output head of a model, from hidden states h to logits: z = cap(scale * (h W^T + b))."""

    weight: torch.Tensor | None
    """[>= V, D]; rows past the vocabulary are padding and get no gradient. None for a model that
    makes logits in its own way: these, [P, >= V], then take the place of hidden states."""

    bias: torch.Tensor | None  # [>= V]
    vocab_size: int  # V
    scale: float = 1.0
    softcap: float | None = None
    """z becomes softcap * tanh(z / softcap)."""

    def cast(self, dtype: torch.dtype) -> "Head":
        """Return the head without padding, in `dtype`, that of the hidden states."""
        return self._with(lambda tensor: tensor.to(dtype))

    def copy(self) -> "Head":
        """Return the head without padding, detached, in memory that it shares with nothing."""
        return self._with(lambda tensor: tensor.detach().clone())

    def products(self, hidden: torch.Tensor) -> torch.Tensor:
        """Return h W^T + b, [C, V], of hidden states [C, D] in the head's dtype."""
        if self.weight is None:
            return hidden[:, : self.vocab_size]
        return torch.nn.functional.linear(hidden, self.weight, self.bias)

    def raw_logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """Return logits [P, V] of hidden states [P, D], float32 or as the product makes them."""
        if self.scale == 1.0 and self.softcap is None:
            return self.cast(hidden.dtype).products(hidden)
        return self.logits(hidden)

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """Return logits [P, V] float32 of hidden states [P, D]."""
        z = self.cast(hidden.dtype).products(hidden).float()
        if self.scale != 1.0:
            z = self.scale * z
        return z if self.softcap is None else self.softcap * torch.tanh(z / self.softcap)

    def _with(self, change: Callable[[torch.Tensor], torch.Tensor]) -> "Head":
        weight, bias = (
            None if each is None else change(each[: self.vocab_size])
            for each in (self.weight, self.bias)
        )
        return replace(self, weight=weight, bias=bias)


class DataFacts(Protocol):
    """Facts that models are built from: of prepared data, or known before it is made."""

    @property
    def vocab_size(self) -> int:
        """Number of ids of the tokenizer."""

    @property
    def classes(self) -> tuple[str, ...]:
        """Classes of sequences, by number; none for language models."""

    @property
    def special_ids(self) -> dict[str, int]:
        """Ids of bos, eos and padding, by the names in transformers' configs."""
