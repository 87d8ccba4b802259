"""Threshold (VarOpt) sampling: an unbiased target from K ids a position, with the least variance.

Cohen, Duffield, Kaplan, Lund, Thorup, "Stream sampling for variance-optimal estimation of subset
sums", SODA 2009. The h most probable ids are kept as they are; the other K - h are drawn with
probability p_i / tau each and all stand for tau = (1 - head) / (K - h), so the tail costs no values
and the sum is 1. With E[t] = p the gradient q - t of the forward KL is unbiased too.

Layout of a position: H codes of `head_bits`, then K ids of 2 or 3 bytes. Ids 0 .. h-1 are the
head, in falling order of probability; the codes of places h .. H-1 mean "no own value".
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from kdscale.cache.codecs import kernels
from kdscale.cache.codecs.chunked import ChunkedCodec
from kdscale.cache.codecs.distribution import Distribution
from kdscale.cache.codecs.id_bytes import from_bytes, id_bytes, to_bytes
from kdscale.cache.codecs.vocab_blocks import BLOCK, locate, rows, running_sums
from kdscale.types import SparseTargets


@dataclass(frozen=True)
class Varopt(ChunkedCodec):
    """K ids, at most `head` of them with a probability of their own, in `head_bits` bits."""

    k: int
    head: int
    head_bits: int
    vocab_size: int

    @property
    def bytes_per_position(self) -> int:
        """See `Codec.bytes_per_position`."""
        return self.prefix_bytes + self.k * id_bytes(self.vocab_size)

    @property
    def streams(self) -> int:
        """The first uniform rounds the head, the second draws the tail."""
        return 2

    @property
    def prefix_bytes(self) -> int:
        """Those of the head's codes."""
        return self.head * self._code_bytes

    @property
    def blocks_read(self) -> int:
        """See `ChunkedCodec.blocks_read`."""
        return self.k

    @property
    def largest_read(self) -> int:
        """See `ChunkedCodec.largest_read`: the head, and one that may be in it."""
        return self.head + 1

    def decode(self, payload: Tensor) -> SparseTargets:
        """[..., bytes] uint8 -> K ids and probabilities that sum to 1. An id may occur twice."""
        codes = self._codes(payload)
        ids = from_bytes(payload[..., self.prefix_bytes :], id_bytes(self.vocab_size))
        in_tail = codes == self._steps + 1
        own = codes.masked_fill(in_tail, 0)
        slots = self.k - self.head + in_tail.sum(-1, keepdim=True)
        tau = (self._steps - own.sum(-1, keepdim=True)) / (self._steps * slots)
        head = torch.where(in_tail, tau, own / self._steps)
        tail = tau.expand(*tau.shape[:-1], self.k - self.head)
        return SparseTargets(ids, torch.cat([head, tail], dim=-1))

    def ordered_ids(self, payload: Tensor) -> Tensor:
        """[P, bytes] uint8 -> [P] int64: h. The ids of the tail may come in any order."""
        return (self._codes(payload) != self._steps + 1).sum(-1)

    def describe(self) -> dict[str, Any]:
        """See `Codec.describe`."""
        return {
            "kind": "varopt",
            "k": self.k,
            "head": self.head,
            "head_bits": self.head_bits,
            "vocab_size": self.vocab_size,
        }

    def select(self, p: Distribution, uniforms: Tensor) -> tuple[Tensor, Tensor]:
        """Codes [C, H] and ids [C, K] of a chunk."""
        head_ids = p.largest
        values = p.blocks.flatten(1).gather(-1, head_ids).double()
        heads = _head_size(values, p.mass, self.k)
        in_head = torch.arange(self.head, device=values.device) < heads
        tail, tail_sums = _without(p, head_ids[:, : self.head], in_head)
        sums = running_sums(tail_sums)
        codes = self._round(values[:, : self.head].where(in_head, 0.0), sums[:, -1:], uniforms)

        slots = torch.arange(self.k, device=values.device)
        draws = (slots - heads).clamp(min=0) + uniforms[:, 1:]
        points = draws / (self.k - heads) * sums[:, -1:]
        tail_ids = locate(tail, sums, points).clamp(max=self.vocab_size - 1)
        own_ids = head_ids.gather(-1, slots.clamp(max=self.head).expand_as(tail_ids))
        ids = torch.where(slots < heads, own_ids, tail_ids)
        return codes.masked_fill(~in_head, self._steps + 1), ids

    def select_by_kernel(
        self, logits: Tensor, uniforms: Tensor, temperature: float
    ) -> tuple[Tensor, ...] | None:
        """See `ChunkedCodec.select_by_kernel`."""
        if not kernels.take(self.k, self.vocab_size, logits.device.type):
            return None
        return kernels.varopt(logits, uniforms, self.k, self.head, self._steps, temperature)

    def pack(self, *selected: Tensor) -> Tensor:
        """See `ChunkedCodec.pack`."""
        codes, ids = selected
        held = to_bytes(codes, self._code_bytes), to_bytes(ids, id_bytes(self.vocab_size))
        return torch.cat(held, dim=-1)

    @property
    def _code_bytes(self) -> int:
        return self.head_bits // 8

    @property
    def _steps(self) -> int:
        """S: a head value is a multiple of 1/S. Code S + 1 marks a tail id."""
        return 2**self.head_bits - 2

    def _codes(self, payload: Tensor) -> Tensor:
        """[..., H] int64."""
        return from_bytes(payload[..., : self.prefix_bytes], self._code_bytes)

    def _round(self, head_values: Tensor, tail_mass: Tensor, uniforms: Tensor) -> Tensor:
        """Head values [C, H] float64 (0 past the head) -> codes [C, H], multiples of 1/S.

        All running sums of a position are rounded with one uniform: each code keeps its mean, and
        the head as a whole never exceeds 1.
        """
        sums = head_values.cumsum(-1)
        share = sums / (sums[:, -1:] + tail_mass)
        # A uniform next to 1 would round S + u up to S + 1.
        rounded = (share * self._steps + uniforms[:, :1]).floor().clamp(max=self._steps).long()
        return rounded.diff(dim=-1, prepend=torch.zeros_like(rounded[:, :1]))


def _head_size(values: Tensor, mass: Tensor, k: int) -> Tensor:
    """Return h [C, 1].

    The smallest with p_(h+1) <= tau_h = (1 - sum of h largest) / (k - h), else H.

    values: the H + 1 largest probabilities, [C, H + 1] float64, falling; mass: of all, [C, 1].
    """
    sizes = torch.arange(values.shape[-1], device=values.device)
    before = values.cumsum(-1) - values
    # Rounding can leave less than nothing; an id of probability 0 must not count as above it.
    tau = (mass - before).clamp(min=0) / (k - sizes)
    fits = (values <= tau) | (sizes == sizes[-1])
    return fits.int().argmax(-1, keepdim=True)


def _without(p: Distribution, head_ids: Tensor, in_head: Tensor) -> tuple[Tensor, Tensor]:
    """Set the head's ids [C, H] to 0 in the blocks of `p` (where `in_head` [C, H]), in place.

    Returns the blocks and their sums [C, N].
    """
    flat = p.blocks.flatten(1)
    kept = flat.gather(-1, head_ids).masked_fill(in_head, 0.0)
    flat.scatter_(-1, head_ids, kept)
    # Added up again: what is left of a block is less than its sum was rounded by.
    touched = head_ids // BLOCK
    return p.blocks, p.sums.scatter(-1, touched, rows(p.blocks, touched).sum(-1))
