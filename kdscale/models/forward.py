"""Forward from token ids to logits, with attention kept inside each document of a sequence.

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
from kdscale.models.attention import FLASH, additive, implementation
from kdscale.models.documents import Documents, copy_to, document_positions, packing_known
from kdscale.models.tasks import task_of
from kdscale.types import Rows, labels_of


class RowTensors(NamedTuple):
    """Sequences for a model and its loss. A tuple, because ZeRO looks for tensors in it."""

    ids: torch.Tensor  # [B, T] int64
    segments: torch.Tensor  # [B, T] int64
    mask: torch.Tensor  # [B, T] bool: the positions that count
    labels: torch.Tensor  # [B, T] int64; -1 where there is none
    at: torch.Tensor | None = None
    """[P] int64: the positions of the mask, in the flattened [B * T]; None: see the mask itself,
    whose device is then waited for."""
    documents: Documents | None = None
    """Those of the sequences; None: see the segments."""

    @property
    def known(self) -> torch.Tensor:
        """The positions that count and have a label, [B, T] bool."""
        return self.mask & (self.labels >= 0)

    @property
    def targets(self) -> int:
        """P, the number of positions that count."""
        return int(self.mask.sum()) if self.at is None else len(self.at)

    def pick(self, values: torch.Tensor) -> torch.Tensor:
        """Return `values` [B, T, *] at the P positions that count, in order, [P, *]."""
        if self.at is None:
            return values[self.mask]
        return values.flatten(0, 1)[self.at]

    def each(self, change: Callable[[torch.Tensor], torch.Tensor]) -> "RowTensors":
        """Return ids, segments, mask and labels, each as `change` makes it."""
        return RowTensors(
            change(self.ids), change(self.segments), change(self.mask), change(self.labels)
        )

    def with_mask(self, mask: torch.Tensor) -> "RowTensors":
        """Return the same sequences, of which the positions in `mask` [B, T] bool count."""
        return self._replace(mask=mask, at=None)


def row_tensors(rows: Rows, device: torch.device, valid: np.ndarray | None = None) -> RowTensors:
    """Return `rows` on `device`. Those that are not `valid` ([B] bool) get an empty mask."""
    mask = rows.loss_mask.astype(bool, copy=False)
    if valid is not None:
        mask = mask & valid[:, None]
    ids, segments, labels = (
        copy_to(each, device).to(torch.int64)
        for each in (rows.input_ids, rows.segment_ids, labels_of(rows))
    )
    return RowTensors(
        ids,
        segments,
        copy_to(mask, device),
        labels,
        copy_to(np.flatnonzero(mask), device),
        Documents.of(rows.segment_ids, device),
    )


def attention_inputs(
    model: torch.nn.Module, segments: torch.Tensor, documents: Documents | None = None
) -> dict[str, Any]:
    """Return position_ids [B, T] and attention_mask of a transformers `model` for packed documents.

    `segments` is [B, T] int64, 0 where there is padding, and `documents` are those in it. The mask
    is what transformers makes for the model's attention implementation: one for each kind of its
    layers (full, sliding window, chunks), each inside a document. Sequences of one document need
    none: the model's own causal attention does, as padding comes after the document. FlashAttention
    takes the bounds of documents in place of masks.
    """
    documents = documents or Documents.ask(segments)
    bare = unwrapped(model)
    is_flash = implementation(bare) == FLASH
    if not documents.packed and not is_flash:
        return {}
    positions = document_positions(segments)
    if is_flash:
        # Without bounds it would look for them in every layer, in batches of one row alone.
        return {"position_ids": positions, **_flash_inputs(documents)}
    make_masks = getattr(bare, "create_masks_for_generate", create_masks_for_generate)
    dtype, device = _computed_dtype(bare, segments.device), segments.device
    # Read for its shape, dtype and device alone.
    embeddings = torch.empty((*segments.shape, 1), dtype=dtype, device=device)
    with packing_known(documents):
        masks = make_masks(bare.config, embeddings, None, None, position_ids=positions)
    if device.type == "cuda":
        masks = additive(masks, dtype)
    return {"position_ids": positions, "attention_mask": masks}


def _flash_inputs(documents: Documents) -> dict[str, Any]:
    """Return what transformers hands to FlashAttention of a batch's documents."""
    bounds, longest = documents.bounds, documents.longest
    return {
        "cu_seq_lens_q": bounds,
        "cu_seq_lens_k": bounds,
        "max_length_q": longest,
        "max_length_k": longest,
    }


def _computed_dtype(model: torch.nn.Module, device: torch.device) -> torch.dtype:
    """Return the dtype of a model's products: autocast's where it is on, else the weights'."""
    if torch.is_autocast_enabled(device.type):
        return torch.get_autocast_dtype(device.type)
    return next(p.dtype for p in model.parameters() if p.is_floating_point())


def model_inputs(
    model: torch.nn.Module,
    input_ids: torch.Tensor,
    segments: torch.Tensor,
    documents: Documents | None = None,
) -> dict[str, Any]:
    """Return the arguments of a forward of a transformers `model` for sequences [B, T].

    `documents` are those in `segments`; their device is asked where they are not given.
    """
    if model_task(model) != "causal-lm":
        return {"input_ids": input_ids, "attention_mask": (segments != 0).long()}
    attention = attention_inputs(model, segments, documents)
    return {"input_ids": input_ids, "use_cache": False, **attention}


def broadcast_logits(model: torch.nn.Module, logits: torch.Tensor, length: int) -> torch.Tensor:
    """Return the logits of `model` as [B, T, classes], where T is `length`.

    A classifier gives [B, classes], which then stand at every position, without a copy.
    """
    if model_task(model) != "sequence-classification":
        return logits
    return logits[:, None].expand(-1, length, -1)


def compute_logits(
    model: torch.nn.Module,
    input_ids: torch.Tensor,
    segments: torch.Tensor,
    vocab_size: int,
    documents: Documents | None = None,
) -> torch.Tensor:
    """Return the logits [B, T, vocab_size] of `input_ids` [B, T], without padding ids.

    `vocab_size` is the number of classes where sequences are classified. For `documents` see
    model_inputs.
    """
    documents = documents or Documents.ask(segments)
    inputs = model_inputs(model, input_ids, segments, documents)
    with packing_known(documents):
        logits = model(**inputs).logits[..., :vocab_size]
    return broadcast_logits(model, logits, input_ids.shape[1])


def target_logits(model: torch.nn.Module, rows: RowTensors, vocab_size: int) -> torch.Tensor:
    """Return the logits [P, vocab_size] at the P positions of `rows` that count, in order.

    See compute_logits. A language model computes no others.
    """
    with intercept_lm_head(
        unwrapped(model), rows.mask.shape, lambda hidden: rows.pick(hidden)[None]
    ) as given:
        logits = compute_logits(model, rows.ids, rows.segments, vocab_size, rows.documents)
    return logits[0] if given else rows.pick(logits)


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
