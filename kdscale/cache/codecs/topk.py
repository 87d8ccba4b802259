"""The K largest probabilities of a position and one "ghost" bucket for the rest.

It is what rivals keep and is here to be compared with. A target cut off at K is biased; it is never
renormalised, as that would inflate the head and teach the student that the tail does not exist.

Layout of a position: K ids of 2 or 3 bytes, then K log-probabilities, both from the most probable
id down. With 16 bits a log-probability is a float16: a probability p keeps a relative error of at
most |log p| / 2048, which is 0.5% at p = 4e-5. With 8 bits it is a whole number of 1/16 nat: an
error of at most 1/32 nat, 3.2% of p, and what is below 1.2e-7 (exp -15.91) is kept as 0.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from kdscale.cache.codecs.chunked import ChunkedCodec
from kdscale.cache.codecs.distribution import Distribution
from kdscale.cache.codecs.id_bytes import from_bytes, id_bytes, to_bytes
from kdscale.types import SparseTargets

_STEPS_PER_NAT = 16
# Of an 8-bit value: stands for a probability of 0.
_NOTHING = 255


@dataclass(frozen=True)
class Topk(ChunkedCodec):
    """K ids with their log-probabilities in `value_bits` bits, 8 or 16."""

    k: int
    value_bits: int
    vocab_size: int

    @property
    def bytes_per_position(self) -> int:
        """See `Codec.bytes_per_position`."""
        return self._ids_bytes + self._value_bytes

    @property
    def streams(self) -> int:
        """See `Codec.streams`."""
        return 0

    @property
    def blocks_read(self) -> int:
        """See `ChunkedCodec.blocks_read`."""
        return self.k

    @property
    def largest_read(self) -> int:
        """See `ChunkedCodec.largest_read`."""
        return self.k

    def decode(self, payload: Tensor) -> SparseTargets:
        """[..., bytes] uint8 -> K ids, their probabilities, and the rest of the mass as `ghost`."""
        held, values = payload.split([self._ids_bytes, self._value_bytes], dim=-1)
        ids = from_bytes(held, id_bytes(self.vocab_size))
        probs = self._probs(values)
        mass = probs.sum(-1, keepdim=True)
        # Rounding can lift the mass above 1, which no target may exceed. Where all ids are listed,
        # what it takes away belongs to no other id.
        whole = mass if self.k == self.vocab_size else mass.clamp(min=1)
        ghost = 1 - (mass / whole).squeeze(-1)
        return SparseTargets(ids, (probs / whole).float(), ghost.float())

    def describe(self) -> dict[str, Any]:
        """See `Codec.describe`."""
        return {
            "kind": "topk",
            "k": self.k,
            "value_bits": self.value_bits,
            "vocab_size": self.vocab_size,
        }

    def select(self, p: Distribution, uniforms: Tensor) -> tuple[Tensor, Tensor]:
        """Ids and log-probabilities [C, K] of a chunk."""
        return p.largest, p.log_probs(p.largest)

    def pack(self, *selected: Tensor) -> Tensor:
        """See `ChunkedCodec.pack`."""
        ids, log_probs = selected
        if self.value_bits == 16:
            values = log_probs.half().view(torch.uint8)
        else:
            values = (log_probs * -_STEPS_PER_NAT).round().clamp(0, _NOTHING).to(torch.uint8)
        return torch.cat([to_bytes(ids, id_bytes(self.vocab_size)), values], dim=-1)

    @property
    def _ids_bytes(self) -> int:
        return self.k * id_bytes(self.vocab_size)

    @property
    def _value_bytes(self) -> int:
        return self.k * self.value_bits // 8

    def _probs(self, values: Tensor) -> Tensor:
        """[..., value bytes] uint8 -> [..., K] float64: what is left of 1 is a small difference."""
        if self.value_bits == 8:
            probs = torch.exp(values.double() / -_STEPS_PER_NAT)
            return probs.masked_fill(values == _NOTHING, 0.0)
        # A slice of one position counts as contiguous, yet may start at an odd byte.
        aligned = values.clone(memory_format=torch.contiguous_format)
        return aligned.view(torch.float16).double().exp()
