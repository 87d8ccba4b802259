"""From token ids to logits, with attention kept inside each document of a sequence.

Models that are no causal language models see all of a sequence but its padding. For those that are,
packed documents get positions that start again and masks that end with the document, so that a
document gives the same logits packed as alone (`sequence_check.py` compares them). Sequences of a
single document take the model's own causal path, which is the fast one.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import torch
from transformers.masking_utils import create_masks_for_generate

from kdscale.config.task import Task
from kdscale.models.tasks import task_of
from kdscale.types import Rows, labels_of


class RowTensors(NamedTuple):
    """Sequences for a model and its loss. A tuple, because ZeRO looks for tensors in it."""

    ids: torch.Tensor  # [B, T] int64
    segments: torch.Tensor  # [B, T] int64
    mask: torch.Tensor  # [B, T] bool: the positions that count
    labels: torch.Tensor  # [B, T] int64; -1 where there is none

    @property
    def known(self) -> torch.Tensor:
        """The positions that count and have a label, [B, T] bool."""
        return self.mask & (self.labels >= 0)


def row_tensors(rows: Rows, device: torch.device, valid: np.ndarray | None = None) -> RowTensors:
    """Return `rows` on `device`. Those that are not `valid` ([B] bool) get an empty mask."""
    mask = torch.from_numpy(rows.loss_mask).to(device, torch.bool)
    if valid is not None:
        mask = mask & torch.from_numpy(valid).to(device)[:, None]
    ids, segments, labels = (
        torch.from_numpy(each).to(device, torch.int64)
        for each in (rows.input_ids, rows.segment_ids, labels_of(rows))
    )
    return RowTensors(ids, segments, mask, labels)


def attention_inputs(model: torch.nn.Module, segments: torch.Tensor) -> dict[str, Any]:
    """Return position_ids [B, T] and attention_mask of a transformers `model` for packed documents.

    `segments` is [B, T] int64, 0 where there is padding. The mask is what transformers makes for
    the model's attention implementation: one for each kind of its layers (full, sliding window,
    chunks), each inside a document. Sequences of one document need none: the model's own causal
    attention does, as padding comes after the document.
    """
    positions = document_positions(segments)
    if not (positions[:, 1:] == 0).any():
        return {}
    bare = unwrapped(model)
    make_masks = getattr(bare, "create_masks_for_generate", create_masks_for_generate)
    dtype = next(p.dtype for p in bare.parameters() if p.is_floating_point())
    # Read for its shape, dtype and device alone.
    embeddings = torch.empty((*segments.shape, 1), dtype=dtype, device=segments.device)
    masks = make_masks(bare.config, embeddings, None, None, position_ids=positions)
    return {"position_ids": positions, "attention_mask": masks}


def document_positions(segments: torch.Tensor) -> torch.Tensor:
    """Return each token's position in its document, [B, T] int64, of `segments` [B, T].

    Padding continues the document before it.
    """
    starts = torch.zeros_like(segments, dtype=torch.bool)
    starts[:, 1:] = (segments[:, 1:] != segments[:, :-1]) & (segments[:, 1:] != 0)
    index = torch.arange(segments.shape[1], device=segments.device).expand_as(segments)
    return index - torch.where(starts, index, 0).cummax(dim=1).values


def model_inputs(
    model: torch.nn.Module, input_ids: torch.Tensor, segments: torch.Tensor
) -> dict[str, Any]:
    """Return the arguments of a forward of a transformers `model` for sequences [B, T]."""
    if model_task(model) != "causal-lm":
        return {"input_ids": input_ids, "attention_mask": (segments != 0).long()}
    return {"input_ids": input_ids, "use_cache": False, **attention_inputs(model, segments)}


def broadcast_logits(model: torch.nn.Module, logits: torch.Tensor, length: int) -> torch.Tensor:
    """Return the logits of `model` as [B, T, classes], where T is `length`.

    A classifier gives [B, classes], which then stand at every position, without a copy.
    """
    if model_task(model) != "sequence-classification":
        return logits
    return logits[:, None].expand(-1, length, -1)


def compute_logits(
    model: torch.nn.Module, input_ids: torch.Tensor, segments: torch.Tensor, vocab_size: int
) -> torch.Tensor:
    """Return the logits [B, T, vocab_size] of `input_ids` [B, T], without padding ids.

    `vocab_size` is the number of classes where sequences are classified.
    """
    logits = model(**model_inputs(model, input_ids, segments)).logits[..., :vocab_size]
    return broadcast_logits(model, logits, input_ids.shape[1])


def target_logits(model: torch.nn.Module, rows: RowTensors, vocab_size: int) -> torch.Tensor:
    """Return the logits [P, vocab_size] at the P positions of `rows` that count, in order.

    See compute_logits. A language model computes no others.
    """
    mask = rows.mask
    with intercept_lm_head(
        unwrapped(model), mask.shape, lambda hidden: hidden[mask][None]
    ) as given:
        logits = compute_logits(model, rows.ids, rows.segments, vocab_size)
    return logits[0] if given else logits[mask]


@contextmanager
def intercept_lm_head(
    model: torch.nn.Module, rows: torch.Size, pick: Callable[[torch.Tensor], torch.Tensor]
) -> Iterator[list[torch.Tensor]]:
    """Inside, let the last linear map of `model` compute only some positions.

    Logits are the largest array of a forward, and mostly a good part of its time. Here the map
    takes `pick` of the hidden states [B, T, D] that it is given for `rows` [B, T]; the list
    collects them. It stays empty where the model has no such map, does not call it, or gives it
    something else, as do models that take the padding out.
    """
    given: list[torch.Tensor] = []
    output: Any = getattr(model, "get_output_embeddings", lambda: None)()
    if output is None:
        yield given
        return

    def take(_: torch.nn.Module, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
        if arguments[0].shape[:-1] != rows:
            return arguments
        given.append(arguments[0])
        return (pick(arguments[0]), *arguments[1:])

    hook = output.register_forward_pre_hook(take)
    try:
        yield given
    finally:
        hook.remove()


def model_task(model: torch.nn.Module) -> Task:
    """Return the task of a transformers model, or of one inside of a back end's or an engine's."""
    return task_of(unwrapped(model).config)


def unwrapped(model: torch.nn.Module) -> Any:
    """Return the transformers model inside of an engine or a data-parallel module."""
    return getattr(model, "module", model)
