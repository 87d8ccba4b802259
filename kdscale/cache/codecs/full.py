"""All V log-probabilities of a position, in float16: for tests and small vocabularies.

Log-probabilities rather than probabilities, as float16 then keeps about three digits of every
probability, the smallest included.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from kdscale.cache.codecs.chunked import ChunkedCodec
from kdscale.cache.codecs.distribution import Distribution
from kdscale.types import DenseTargets


@dataclass(frozen=True)
class Full(ChunkedCodec):
    """The whole distribution at 2 V bytes a position."""

    vocab_size: int

    @property
    def bytes_per_position(self) -> int:
        """See `Codec.bytes_per_position`."""
        return 2 * self.vocab_size

    @property
    def streams(self) -> int:
        """See `Codec.streams`."""
        return 0

    def decode(self, payload: Tensor) -> DenseTargets:
        """[..., 2 V] uint8 -> log-probabilities [..., V] float32, normalised once more."""
        # A slice of one position counts as contiguous, yet may start at an odd byte.
        aligned = payload.clone(memory_format=torch.contiguous_format)
        return DenseTargets(aligned.view(torch.float16).float().log_softmax(-1))

    def describe(self) -> dict[str, Any]:
        """See `Codec.describe`."""
        return {"kind": "full", "vocab_size": self.vocab_size}

    def select(self, p: Distribution, uniforms: Tensor) -> tuple[Tensor]:
        """See `ChunkedCodec.select`."""
        log_probs = p.logits[:, : self.vocab_size] - p.log_norm[:, None]
        return (log_probs.half(),)

    def pack(self, *selected: Tensor) -> Tensor:
        """See `ChunkedCodec.pack`."""
        (log_probs,) = selected
        return log_probs.view(torch.uint8)
