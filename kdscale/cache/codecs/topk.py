"""The K largest probabilities of a position and one "ghost" bucket for the rest.

It is what rivals keep and is here to be compared with. A target cut off at K is biased; it is never
renormalised, as that would inflate the head and teach the student that the tail does not exist.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from kdscale.cache.codecs import bits
from kdscale.cache.codecs.base import refuse_nan, usable
from kdscale.types import SparseTargets


@dataclass(frozen=True)
class Topk:
    """K packed ids, then K log-probabilities in float16, both from the most probable id down."""

    k: int
    vocab_size: int

    @property
    def bytes_per_position(self) -> int:
        return self._id_bytes + 2 * self.k

    def encode(self, logits: Tensor, uniforms: Tensor) -> Tensor:
        """See `Codec.encode`; draws nothing, so `uniforms` is not looked at."""
        log_probs = usable(logits, self.vocab_size).float().log_softmax(-1)
        # A NaN or +inf anywhere in a row makes all of its log-softmax NaN.
        refuse_nan(log_probs[:, 0])
        kept = log_probs.topk(self.k, dim=-1)
        ids = bits.pack(kept.indices, bits.width_for(self.vocab_size))
        return torch.cat([ids, kept.values.half().view(torch.uint8)], dim=-1)

    def decode(self, payload: Tensor) -> SparseTargets:
        """[..., bytes] uint8 -> K ids, their probabilities, and the rest of the mass as `ghost`."""
        packed, values = payload.split([self._id_bytes, 2 * self.k], dim=-1)
        ids = bits.unpack(packed, self.k, bits.width_for(self.vocab_size))
        # A slice of one position counts as contiguous, yet may start at an odd byte.
        aligned = values.clone(memory_format=torch.contiguous_format)
        probs = aligned.view(torch.float16).float().exp()
        # Rounding to float16 can lift the sum a little above 1.
        return SparseTargets(ids, probs, ghost=(1 - probs.sum(-1)).clamp(min=0))

    def describe(self) -> dict[str, Any]:
        return {"kind": "topk", "k": self.k, "vocab_size": self.vocab_size}

    @property
    def _id_bytes(self) -> int:
        return bits.packed_bytes(self.k, bits.width_for(self.vocab_size))
