"""Rows of the validation set as sequences, which any program can feed to a model.

A program that knows nothing of kdscale gives a model token ids and an attention mask. So a row of a
causal language model is cut into the documents packed in it, each padded on the right.
"""

from collections.abc import Sequence

import torch

from kdscale.data.rows.order import spread
from kdscale.data.rows.prepared import Prepared
from kdscale.models.forward import RowTensors, row_tensors

_SEQUENCES = 8
_LOGITS = 1 << 26  # of a batch: 256 MiB of float32


def validation_batches(prepared: Prepared, rows: int, *, packed: bool) -> list[RowTensors]:
    """At most `rows` rows of the validation set that have a label, evenly spread, in batches.

    packed: a row may hold several documents, and is cut into them. `segments` of a batch [B, L] is
    its attention mask: 1, and 0 for padding. L is a row's length, of documents the longest's.
    """
    table = prepared.split("validation")
    labelled = table.labelled()
    chosen = table.take(labelled[spread(rows, len(labelled))])
    tensors = row_tensors(chosen, torch.device("cpu"))
    sequences = [RowTensors(*parts) for parts in zip(*tensors, strict=True)]
    if packed:
        sequences = [document for row in sequences for document in _documents(row)]
    sequences = [sequence for sequence in sequences if sequence.known.any()]
    longest = max((len(sequence.ids) for sequence in sequences), default=1)
    size = max(1, min(_SEQUENCES, _LOGITS // (longest * prepared.outputs)))
    return [_padded(sequences[i : i + size]) for i in range(0, len(sequences), size)]


def shorter(batch: RowTensors, multiple: int = 1) -> RowTensors:
    """Half of the first sequence, cut to a `multiple` of tokens: a shape that no batch has. Its
    labels do not count again."""
    length = max(multiple, batch.ids.shape[1] // 2 // multiple * multiple)
    part = RowTensors(*(part[:1, :length] for part in batch))
    return part._replace(mask=torch.zeros_like(part.mask))


def _documents(row: RowTensors) -> list[RowTensors]:
    """The documents of a row [T], without its padding."""
    numbers = row.segments.unique()
    return [RowTensors(*(part[row.segments == n] for part in row)) for n in numbers if n != 0]


def _padded(sequences: Sequence[RowTensors]) -> RowTensors:
    """Sequences [L'] as one batch [B, L], padded on the right with id 0."""
    columns = zip(*sequences, strict=True)
    parts = [torch.nn.utils.rnn.pad_sequence(list(each), batch_first=True) for each in columns]
    batch = RowTensors(*parts)
    return batch._replace(segments=(batch.segments != 0).long())
