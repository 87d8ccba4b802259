"""Logits of documents in packed rows, compared with transformers on each document alone."""

from functools import partial
from typing import Any

import torch

from kdscale.errors import KdscaleError
from kdscale.models.forward import model_inputs, model_task, target_logits
from kdscale.models.sequence_check import SequenceSpec, check_sequences
from tests.architectures import VOCAB, tiny_model

LENGTH = 100
LENGTHS = (37, 50, 9)
NO_CACHE = {"use_cache": False}
PACKED = SequenceSpec(VOCAB, VOCAB, LENGTH, packs=True, micro_batch_size=3)
SINGLE = SequenceSpec(VOCAB, VOCAB, LENGTH, packs=False, micro_batch_size=2)


def logits_at(model: torch.nn.Module) -> Any:
    return partial(target_logits, model, vocab_size=VOCAB)


def rows() -> tuple[torch.Tensor, torch.Tensor, list[tuple[int, int, torch.Tensor]]]:
    """Return rows [3, T], their segments, and the documents as (row, start, ids).

    The rows hold three documents and padding, one document, and one and padding.
    """
    generator = torch.Generator().manual_seed(1)
    drawn = torch.randint(1, VOCAB, (3, LENGTH), generator=generator)
    ids, segments = torch.zeros(3, LENGTH, dtype=torch.int64), torch.zeros(3, LENGTH).long()
    documents, start = [], 0
    for number, length in enumerate(LENGTHS, 1):
        documents.append((0, start, drawn[0, start : start + length]))
        segments[0, start : start + length] = number
        start += length
    documents += [(1, 0, drawn[1]), (2, 0, drawn[2, : LENGTH // 2])]
    segments[1], segments[2, : LENGTH // 2] = 1, 1
    ids = torch.where(segments != 0, drawn, 0)
    return ids, segments, documents


@torch.no_grad()
def worst_difference(model: torch.nn.Module, packs: bool = True) -> float:
    """Return the largest difference of two logits, in standard deviations of logits."""
    ids, segments, documents = rows()
    if not packs:
        ids, segments = ids[1:], segments[1:]
        documents = [(row - 1, start, own) for row, start, own in documents if row]
    found = model(**model_inputs(model, ids, segments)).logits[..., :VOCAB]
    worst, flags = 0.0, NO_CACHE if model_task(model) == "causal-lm" else {}
    for row, start, own in documents:
        alone = model(input_ids=own[None], **flags).logits[0, :, :VOCAB]
        there = found[row, start : start + len(own)]
        worst = max(worst, ((there - alone).abs().max() / alone.std()).item())
    return worst


def outcome(kind: str, masked: bool) -> str:
    """Return `equal`, `equal where rows hold one document`, `refused`, or the error of building."""
    try:
        model = tiny_model(kind, masked)
        model(input_ids=torch.ones(1, 8, dtype=torch.int64), **({} if masked else NO_CACHE))
    except Exception as error:
        return f"not built: {type(error).__name__}: {error}"
    trials = {"equal": PACKED, "equal where rows hold one document": SINGLE}
    for name, rows_of in list(trials.items())[masked:]:
        try:
            check_sequences(model, logits_at(model), rows_of)
        except KdscaleError:
            continue
        worst = worst_difference(model, rows_of.packs)
        return name if worst < 1e-3 else f"silently different by {worst:.2g}"
    return "refused"
