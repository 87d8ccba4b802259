"""Comparison of an exported model with the run's own, on sequences of the validation set.

A program without kdscale gives a model token ids and an attention mask. So a packed sequence of a
causal language model is cut into its documents, each padded on the right.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from operator import itemgetter
from typing import Any

import torch

from kdscale.data.rows.order import spread
from kdscale.data.rows.prepared import Prepared
from kdscale.errors import KdscaleError
from kdscale.evaluate.metrics import LanguageModelSums
from kdscale.models.forward import RowTensors, broadcast_logits, model_inputs, row_tensors

_SEQUENCES = 8
_LOGITS = 1 << 26  # of a batch: 256 MiB of float32


def validation_batches(prepared: Prepared, rows: int, *, packed: bool) -> list[RowTensors]:
    """Return at most `rows` validation sequences with a label, evenly spaced, in batches.

    `packed` cuts a sequence into the documents that it may hold. `segments` of a batch [B, L] is
    its attention mask: 1, and 0 for padding. L is a sequence's length, of documents the longest's.
    """
    table = prepared.split("validation")
    labelled = table.labelled()
    chosen = table.take(labelled[spread(rows, len(labelled))])
    tensors = row_tensors(chosen, torch.device("cpu"))
    sequences = [tensors.each(itemgetter(row)) for row in range(len(chosen))]
    if packed:
        sequences = [document for row in sequences for document in _documents(row)]
    sequences = [sequence for sequence in sequences if sequence.known.any()]
    longest = max((len(sequence.ids) for sequence in sequences), default=1)
    size = max(1, min(_SEQUENCES, _LOGITS // (longest * prepared.outputs)))
    return [_padded(sequences[i : i + size]) for i in range(0, len(sequences), size)]


def shorter(batch: RowTensors, multiple: int = 1) -> RowTensors:
    """Return half of the first sequence, cut to a `multiple` of tokens: a new shape.

    Its labels do not count again.
    """
    length = max(multiple, batch.ids.shape[1] // 2 // multiple * multiple)
    part = batch.each(lambda part: part[:1, :length])
    return part.with_mask(torch.zeros_like(part.mask))


def _documents(row: RowTensors) -> list[RowTensors]:
    """Return the documents of a row [T], without its padding."""
    numbers = row.segments.unique()
    return [row.each(itemgetter(row.segments == n)) for n in numbers if n != 0]


def _padded(sequences: Sequence[RowTensors]) -> RowTensors:
    """Pad sequences [L'] on the right with id 0 to one batch [B, L]."""
    columns = zip(*((s.ids, s.segments, s.mask, s.labels) for s in sequences), strict=True)
    pad = torch.nn.utils.rnn.pad_sequence
    ids, segments, mask, labels = (pad(list(each), batch_first=True) for each in columns)
    return RowTensors(ids, (segments != 0).long(), mask, labels)


Forward = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""From input_ids and attention_mask, [B, L] int64, to logits [B, L, V]; of a classifier [B, V],
where V is the number of its classes."""


@dataclass(frozen=True)
class Comparison:
    """Difference of an exported model from the run's own."""

    shapes: tuple[tuple[int, int], ...]  # sequences and tokens of the batches, each shape once
    difference: float  # the largest, of two logits
    largest: float  # logit of the run's own model, absolute
    loss: float  # nats a label
    agreement: float  # share of labels where both have the same top-1
    kl: float  # KL(own || exported), nats a label
    labels: int

    def check_difference(self, tolerance: float, what: str) -> None:
        """Refuse a difference of logits above `tolerance`, or NaN."""
        if not self.difference <= tolerance:
            raise KdscaleError(
                f"The logits of {what} differ from the run's own by {self.difference:.3g}; "
                f"{tolerance:.3g} are allowed.",
                "Nothing was written. Leave this format out, and report it with the versions of "
                "torch, transformers and onnxruntime.",
            )

    def check_kl(self, tolerance: float, what: str) -> None:
        """Refuse distributions further off than `tolerance` nats a label, or NaN."""
        if not self.kl <= tolerance:
            raise KdscaleError(
                f"The distributions of {what} are {self.kl:.3g} nats a label (KL) from the run's "
                f"own, and {self.agreement:.1%} of its top-1 choices are the same; "
                f"{tolerance:.3g} nats are allowed.",
                "Nothing was written. This model does not bear 8 bits: leave this format out, and "
                "take --format onnx (float32).",
            )

    def as_dict(self) -> dict[str, Any]:
        """Return values for JSON."""
        return {
            "max_difference": self.difference,
            "loss": self.loss,
            "agreement_top1": self.agreement,
            "kl": self.kl,
            "labels": self.labels,
            "shapes": [list(shape) for shape in self.shapes],
        }


def forward_of(model: torch.nn.Module) -> Forward:
    """Return a transformers model's forward as kdscale runs it."""

    def forward(ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = model(**model_inputs(model, ids, mask)).logits
        return logits

    return forward


@torch.no_grad()
def compare(
    own: torch.nn.Module, exported: Forward, batches: Iterable[RowTensors], outputs: int
) -> Comparison:
    """Compare over `batches` (`segments` is the attention mask) the first `outputs` of logits.

    Logits are compared wherever there is a token; loss, agreement and KL are those of the labels.
    """
    reference = forward_of(own)
    sums = LanguageModelSums(torch.device("cpu"))
    shapes: dict[tuple[int, int], None] = {}
    difference, largest = torch.zeros(()), torch.zeros(())
    for batch in batches:
        length = batch.ids.shape[1]
        shapes[len(batch.ids), length] = None
        expected, found = (
            broadcast_logits(own, forward(batch.ids, batch.segments)[..., :outputs], length).float()
            for forward in (reference, exported)
        )
        here = batch.segments.bool()
        difference = torch.maximum(difference, (expected[here] - found[here]).abs().max())
        largest = torch.maximum(largest, expected[here].abs().max())
        known = batch.known
        teacher = expected[known].log_softmax(dim=-1)
        sums.update(found[known], batch.labels[known], teacher)
    metrics = sums.metrics()
    return Comparison(
        shapes=tuple(shapes),
        difference=difference.item(),
        largest=largest.item(),
        loss=metrics["loss"],
        agreement=metrics["agreement_top1"],
        kl=metrics["kl_teacher_student"],
        labels=metrics["tokens"],
    )
