"""All V log-probabilities of a position, in float16: for tests and small vocabularies.

Log-probabilities rather than probabilities, as float16 then keeps about three digits of every
probability, the smallest included.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from kdscale.cache.codecs.base import refuse_nan, usable
from kdscale.types import DenseTargets


@dataclass(frozen=True)
class Full:
    """The whole distribution at 2 V bytes a position."""

    vocab_size: int

    @property
    def bytes_per_position(self) -> int:
        return 2 * self.vocab_size

    def encode(self, logits: Tensor, uniforms: Tensor) -> Tensor:
        """See `Codec.encode`; draws nothing, so `uniforms` is not looked at."""
        log_probs = usable(logits, self.vocab_size).float().log_softmax(-1)
        # A NaN or +inf anywhere in a row makes all of its log-softmax NaN.
        refuse_nan(log_probs[:, 0])
        return log_probs.half().view(torch.uint8)

    def decode(self, payload: Tensor) -> DenseTargets:
        """[..., 2 V] uint8 -> log-probabilities [..., V] float32, normalised once more."""
        return DenseTargets(payload.contiguous().view(torch.float16).float().log_softmax(-1))

    def describe(self) -> dict[str, Any]:
        return {"kind": "full", "vocab_size": self.vocab_size}
