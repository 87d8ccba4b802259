"""From rows to logits, with attention kept inside each document of a row.

Packed documents get a block-diagonal causal mask and positions that start again, so that a document
gives the same logits packed as alone. Rows of a single segment take the model's own causal path,
which is the fast one.
"""

from typing import Any

import torch
from transformers import PreTrainedModel

from kdscale.errors import KdscaleError
from kdscale.types import Rows


def row_tensors(
    rows: Rows, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """input_ids [B, T] int64, segment_ids [B, T] int64, loss_mask [B, T] bool on `device`."""
    ids = torch.from_numpy(rows.input_ids).to(device, torch.int64)
    segments = torch.from_numpy(rows.segment_ids).to(device, torch.int64)
    return ids, segments, torch.from_numpy(rows.loss_mask).to(device, torch.bool)


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
    dtype = next(p.dtype for p in model.parameters() if p.is_floating_point())
    return {"input_ids": input_ids, "use_cache": False, **attention_inputs(segments, dtype)}


def compute_logits(
    model: torch.nn.Module, input_ids: torch.Tensor, segments: torch.Tensor, vocab_size: int
) -> torch.Tensor:
    """Logits [B, T, vocab_size] of `input_ids` [B, T], padding ids of the embedding cut off."""
    return model(**model_inputs(model, input_ids, segments)).logits[..., :vocab_size]


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
