"""Documents packed in sequences: where they start, known on the host, so that no device is asked.

Asking a GPU makes the host wait until it has computed everything before, and then the GPU wait for
the host's next kernels.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple, Self

import numpy as np
import torch
from transformers import masking_utils


class Documents(NamedTuple):
    """Documents of a batch of sequences [B, T]. Padding belongs to the one before it."""

    bounds: torch.Tensor
    """[N + 1] int32: where each of the N documents starts in the flattened batch, and its end."""

    longest: int
    """Tokens of the longest."""

    packed: bool
    """Whether a sequence holds several."""

    @classmethod
    def of(cls, segments: np.ndarray, device: torch.device) -> Self:
        """Return those of `segments` [B, T], 0 where there is padding, with bounds on `device`."""
        starts = np.ones(segments.shape, dtype=bool)
        starts[:, 1:] = (segments[:, 1:] != segments[:, :-1]) & (segments[:, 1:] != 0)
        bounds = np.append(np.flatnonzero(starts), segments.size).astype(np.int32)
        packed = len(bounds) - 1 > len(segments)
        return cls(copy_to(bounds, device), int(np.diff(bounds).max(initial=0)), packed)

    @classmethod
    def ask(cls, segments: torch.Tensor) -> Self:
        """Return those of `segments` [B, T] on a device, whose work so far is waited for."""
        return cls.of(segments.cpu().numpy(), segments.device)


def document_positions(segments: torch.Tensor) -> torch.Tensor:
    """Return each token's position in its document, [B, T] int64, of `segments` [B, T].

    Padding continues the document before it.
    """
    starts = torch.zeros_like(segments, dtype=torch.bool)
    starts[:, 1:] = (segments[:, 1:] != segments[:, :-1]) & (segments[:, 1:] != 0)
    index = torch.arange(segments.shape[1], device=segments.device).expand_as(segments)
    return index - torch.where(starts, index, 0).cummax(dim=1).values


def copy_to(array: np.ndarray, device: torch.device) -> torch.Tensor:
    """Return `array` as a tensor on `device`. The copy to a GPU is not waited for."""
    tensor = torch.from_numpy(array)
    if device.type != "cuda":
        return tensor.to(device)
    if torch.cuda.is_initialized():
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)


@contextmanager
def packing_known(documents: Documents) -> Iterator[None]:
    """Inside, a forward of a transformers model does not ask its device whether rows are packed.

    It would for every kind of its layers, by the positions that it is given or makes.
    """

    def find(position_ids: torch.Tensor) -> torch.Tensor | None:
        if not documents.packed:
            return None
        before = position_ids[:, :1] - 1
        return (torch.diff(position_ids, prepend=before, dim=-1) != 1).cumsum(-1)

    asks = masking_utils.find_packed_sequence_indices
    masking_utils.find_packed_sequence_indices = find
    try:
        yield
    finally:
        masking_utils.find_packed_sequence_indices = asks
