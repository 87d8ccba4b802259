"""From rows to logits, with attention kept inside each document of a row.

Models that are no causal language models see all of a row but its padding. For those that are,
packed documents get a block-diagonal causal mask and positions that start again, so that a document
gives the same logits packed as alone. Rows of a single segment take the model's own causal path,
which is the fast one.
"""

from typing import Any, NamedTuple

import numpy as np
import torch
from transformers import PreTrainedModel

from kdscale.config.task import Task
from kdscale.errors import KdscaleError
from kdscale.models.projection import projecting
from kdscale.models.tasks import task_of
from kdscale.types import Rows, labels_of


class RowTensors(NamedTuple):
    """Rows as a model and its loss take them. A tuple, because ZeRO looks for tensors in it."""

    ids: torch.Tensor  # [B, T] int64
    segments: torch.Tensor  # [B, T] int64
    mask: torch.Tensor  # [B, T] bool: the positions that count
    labels: torch.Tensor  # [B, T] int64; -1 where there is none

    @property
    def known(self) -> torch.Tensor:
        """[B, T] bool: the positions that count and have a label."""
        return self.mask & (self.labels >= 0)


def row_tensors(rows: Rows, device: torch.device, valid: np.ndarray | None = None) -> RowTensors:
    """`rows` on `device`. Rows that are not `valid` ([B] bool) get an empty mask."""
    mask = torch.from_numpy(rows.loss_mask).to(device, torch.bool)
    if valid is not None:
        mask = mask & torch.from_numpy(valid).to(device)[:, None]
    ids, segments, labels = (
        torch.from_numpy(each).to(device, torch.int64)
        for each in (rows.input_ids, rows.segment_ids, labels_of(rows))
    )
    return RowTensors(ids, segments, mask, labels)


def next_token_labels(input_ids: torch.Tensor) -> torch.Tensor:
    """Labels [B, T] of `input_ids` [B, T]: position i has token i + 1. The last position wraps
    round; no loss mask counts it."""
    return torch.roll(input_ids, shifts=-1, dims=1)


def attention_inputs(segments: torch.Tensor, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """position_ids [B, T] and attention_mask [B, 1, T, T] where a row holds several documents.

    `segments` is [B, T] int64. Otherwise nothing: the model's own causal attention does, as padding
    comes after the document. The mask is additive, as every attention implementation takes it.
    """
    starts = torch.ones_like(segments, dtype=torch.bool)
    starts[:, 1:] = segments[:, 1:] != segments[:, :-1]
    if not (starts[:, 1:] & (segments[:, 1:] != 0)).any():
        return {}
    index = torch.arange(segments.shape[1], device=segments.device).expand_as(segments)
    position_ids = index - torch.where(starts, index, 0).cummax(dim=1).values
    same = segments[:, :, None] == segments[:, None, :]
    allowed = same & (index[:, :, None] >= index[:, None, :])
    mask = torch.zeros(allowed.shape, dtype=dtype, device=segments.device)
    mask.masked_fill_(~allowed, torch.finfo(dtype).min)
    return {"position_ids": position_ids, "attention_mask": mask[:, None]}


def model_inputs(
    model: torch.nn.Module, input_ids: torch.Tensor, segments: torch.Tensor
) -> dict[str, Any]:
    """What a forward of a transformers `model` takes for rows [B, T]."""
    if _task(model) != "causal-lm":
        return {"input_ids": input_ids, "attention_mask": (segments != 0).long()}
    dtype = next(p.dtype for p in model.parameters() if p.is_floating_point())
    return {"input_ids": input_ids, "use_cache": False, **attention_inputs(segments, dtype)}


def at_rows(model: torch.nn.Module, logits: torch.Tensor, length: int) -> torch.Tensor:
    """The logits of `model` as [B, T, classes], where T is `length`: a classifier gives [B,
    classes], which then stand at every position, without a copy."""
    if _task(model) != "sequence-classification":
        return logits
    return logits[:, None].expand(-1, length, -1)


def compute_logits(
    model: torch.nn.Module, input_ids: torch.Tensor, segments: torch.Tensor, vocab_size: int
) -> torch.Tensor:
    """Logits [B, T, vocab_size] of `input_ids` [B, T], padding ids of the embedding cut off;
    `vocab_size` is the number of classes where rows are classified."""
    logits = model(**model_inputs(model, input_ids, segments)).logits[..., :vocab_size]
    return at_rows(model, logits, input_ids.shape[1])


def target_logits(model: torch.nn.Module, rows: RowTensors, vocab_size: int) -> torch.Tensor:
    """Logits [P, vocab_size] at the P positions of `rows` that count, row after row; see
    compute_logits. Of a language model no others are made."""
    mask = rows.mask
    with projecting(_unwrapped(model), mask.shape, lambda hidden: hidden[mask][None]) as given:
        logits = compute_logits(model, rows.ids, rows.segments, vocab_size)
    return logits[0] if given else logits[mask]


def _task(model: torch.nn.Module) -> Task:
    """Of a transformers model, or of one in a back end's or an engine's wrapping."""
    return task_of(_unwrapped(model).config)


def _unwrapped(model: torch.nn.Module) -> Any:
    return getattr(model, "module", model)


@torch.no_grad()
def check_isolation(
    model: PreTrainedModel | torch.nn.Module, vocab_size: int, device: torch.device
) -> None:
    """Refuse a model whose logits of one packed document depend on the document before it.

    State-space models and some attention kernels ignore the mask: better to find out on 16 tokens
    than from a cache of wrong targets. Collective where the model is sharded.
    """
    was_training = model.training
    model.eval()  # dropout would make any two forwards differ
    generator = torch.Generator().manual_seed(0)
    second = torch.randint(vocab_size, (1, 8), generator=generator)
    first = torch.randint(vocab_size, (2, 8), generator=generator)
    ids = torch.cat([first, second.expand(2, 8)], dim=1).to(device)
    segments = torch.tensor([1] * 8 + [2] * 8, device=device).expand(2, 16)
    try:
        logits = compute_logits(model, ids, segments, vocab_size)[:, 8:].float()
    except (IndexError, RuntimeError, TypeError, ValueError) as error:
        raise KdscaleError(
            f"This architecture cannot keep packed documents apart: {error}",
            "Set data.pack to false.",
        ) from error
    model.train(was_training)
    worst = (logits[0] - logits[1]).abs().max().item()
    if worst > 1e-2 * logits.abs().max().item():
        raise KdscaleError(
            "This architecture lets packed documents see each other: logits differ by "
            f"{worst:.3g}.",
            "Set data.pack to false.",
        )
