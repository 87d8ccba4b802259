"""What a codec is, and the checks on logits that all codecs share.

A codec turns a position's logits into a fixed number of bytes and those bytes into a target for the
student. It is pure tensor code without state: it runs where the logits are, and equal bytes a
position make a row of the cache a fixed-width column.
"""

from typing import Any, Protocol

import torch
from torch import Tensor

from kdscale.errors import KdscaleError
from kdscale.types import Targets


class Codec(Protocol):
    """One way to keep p, the teacher's distribution of the next token."""

    @property
    def bytes_per_position(self) -> int:
        """Bytes of one encoded position."""
        ...

    def encode(self, logits: Tensor, uniforms: Tensor) -> Tensor:
        """[P, V] logits and [P, 2] uniforms -> [P, bytes_per_position] uint8, on the same device.

        logits: any float type, already divided by the temperature; -inf where an id has no
        probability. Columns past the codec's vocabulary (the padding of an embedding) are left out.
        uniforms: float64 in [0, 1), from `kdscale.cache.codecs.noise`.
        Raises KdscaleError for logits with too few columns or without a distribution (NaN, +inf).
        """
        ...

    def decode(self, payload: Tensor) -> Targets:
        """[..., bytes_per_position] uint8 -> targets with the same leading dimensions."""
        ...

    def describe(self) -> dict[str, Any]:
        """Kind, parameters and vocabulary size; `open_codec` gives the same codec back."""
        ...


def usable(logits: Tensor, vocab_size: int) -> Tensor:
    """The first `vocab_size` columns of [P, V] logits, or KdscaleError where V is less."""
    if logits.ndim != 2 or logits.shape[1] < vocab_size:
        raise KdscaleError(
            f"The teacher's logits have the shape {tuple(logits.shape)}, the codec needs "
            f"[positions, {vocab_size} ids or more].",
            "Use the tokenizer that belongs to the teacher.",
        )
    return logits[:, :vocab_size]


def refuse_nan(witness: Tensor) -> None:
    """KdscaleError if a position has no distribution; `witness` [P] is NaN exactly there."""
    if bad := int(torch.isnan(witness).sum()):
        raise KdscaleError(
            f"The teacher's logits hold NaN or infinity at {bad} of {len(witness)} positions.",
            "Run the teacher in bfloat16 or float32: float16 overflows in many models.",
        )
