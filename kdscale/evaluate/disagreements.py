"""The positions where student and teacher disagree most, with their text and what each says.

At most one position of a sequence: neighbours of a bad one are bad for the same reason. Every rank
keeps the greatest of its own; what it keeps is a row of numbers, so that ranks exchange one tensor.
"""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor
from transformers import AutoTokenizer

from kdscale.data.rows.prepared import Prepared
from kdscale.distributed.rank import Rank
from kdscale.evaluate.schema import Disagreement, Prediction
from kdscale.models.forward import RowTensors
from kdscale.types import labels_of

KEPT = 8
_SAID = 3  # outcomes of each model
_CONTEXT = 48  # tokens of text before a position, or of a document's beginning
_KL, _ROW, _POSITION, _FIRST = range(4)
_COLUMNS = _FIRST + 4 * _SAID  # then ids and probabilities of the teacher's, and of the student's


class Disagreements:
    """The KEPT greatest KL(teacher || student) of one evaluation set."""

    def __init__(self, device: torch.device) -> None:
        self._kept = torch.full((0, _COLUMNS), 0.0, dtype=torch.float64, device=device)

    def add(
        self, batch: RowTensors, rows: Tensor, kl: Tensor, teacher: Tensor, logits: Tensor
    ) -> None:
        """Add a batch of sequences [B] with P targets.

        rows: [P] int64, the number of the sequence of each target. kl: [P] float64. teacher: [P, V]
        log-probabilities. logits: [P, V], the student's.
        """
        if not len(kl):
            return
        kl = kl.where(kl.isfinite(), 0.0)  # a model that has diverged disagrees everywhere
        positions = torch.arange(batch.mask.shape[1], device=kl.device).expand_as(batch.mask)
        at = torch.stack([rows.double(), batch.pick(positions).double()], dim=1)
        best = _greatest_of_each(rows, kl)
        said = [_said(teacher[best].exp()), _said(logits[best].float().softmax(-1))]
        found = torch.cat([kl[best, None], at[best], *said], dim=1)
        self._kept = _greatest(torch.cat([self._kept, found]))

    def gather(self, worker: Rank) -> None:
        """Keep the greatest of all ranks. Collective."""
        box = torch.full((worker.world_size, KEPT, _COLUMNS), 0.0, dtype=torch.float64)
        box = box.to(self._kept.device)
        # A KL of 0, as of places that no rank has filled, is no disagreement.
        box[worker.rank, : len(self._kept)] = self._kept
        together = worker.all_reduce_sum(box).flatten(0, 1)
        self._kept = _greatest(together[together[:, _KL] > 0])

    def describe(self, domain: str, prepared: Prepared, order: np.ndarray) -> list[Disagreement]:
        """Return them with text, the greatest first.

        `order` holds the places in the set of the sequences that are numbered.
        """
        tokenizer = AutoTokenizer.from_pretrained(
            prepared.tokenizer_folder(), trust_remote_code=False
        )
        names = prepared.classes

        def text(tokens: np.ndarray) -> str:
            found: str = tokenizer.decode(tokens.tolist(), clean_up_tokenization_spaces=False)
            return found

        def outcome(number: int) -> str:
            return names[number] if names else text(np.array([number]))

        table, found = prepared.split(domain), []
        for kept in self._kept.cpu().numpy():
            place, position = int(order[int(kept[_ROW])]), int(kept[_POSITION])
            rows = table.take(np.array([place]))
            said = kept[_FIRST:].reshape(2, 2, _SAID)
            teacher, student = (_predictions(ids, probs, outcome) for ids, probs in said)
            described: Disagreement = {
                "domain": domain,
                "sequence": place,
                "position": position,
                "before": text(_before(rows.input_ids[0], rows.segment_ids[0], position, names)),
                "label": outcome(int(labels_of(rows)[0, position])),
                "kl": float(kept[_KL]),
                "teacher": teacher,
                "student": student,
            }
            found.append(described)
        return found


def _before(
    ids: np.ndarray, segments: np.ndarray, position: int, classes: Sequence[str]
) -> np.ndarray:
    """Return the tokens of the document up to `position`; of a classifier's, the first ones."""
    own = np.flatnonzero(segments == segments[position])
    if classes:
        return ids[own[:_CONTEXT]]
    return ids[own[own <= position][-_CONTEXT:]]


def _predictions(
    ids: np.ndarray, probs: np.ndarray, outcome: Callable[[int], str]
) -> list[Prediction]:
    return [
        {"text": outcome(int(number)), "probability": float(probability)}
        for number, probability in zip(ids, probs, strict=True)
        if number >= 0
    ]


def _greatest_of_each(rows: Tensor, kl: Tensor) -> Tensor:
    """Return the place of the greatest KL of each row, KEPT of them at most: [N] int64."""
    falling = kl.argsort(descending=True, stable=True)
    grouped = falling[rows[falling].argsort(stable=True)]
    ordered = rows[grouped]
    is_first = torch.ones_like(ordered, dtype=torch.bool)
    is_first[1:] = ordered[1:] != ordered[:-1]
    best = grouped[is_first]
    return best[kl[best].argsort(descending=True, stable=True)[:KEPT]]


def _greatest(found: Tensor) -> Tensor:
    order = found[:, _KL].argsort(descending=True, stable=True)
    return found[order[:KEPT]]


def _said(probs: Tensor) -> Tensor:
    """Return the likeliest ids and their probabilities, [N, 2 * _SAID]; -1 where V is smaller."""
    count = min(_SAID, probs.shape[-1])
    top = probs.topk(count, dim=-1)
    blank = torch.full((len(probs), _SAID - count), -1.0, device=probs.device)
    return torch.cat([top.indices.double(), blank, top.values.double(), blank], dim=1)
