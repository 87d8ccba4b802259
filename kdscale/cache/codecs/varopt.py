"""Threshold (VarOpt) sampling: an unbiased target from K ids a position, with the least variance.

Cohen, Duffield, Kaplan, Lund, Thorup, "Stream sampling for variance-optimal estimation of subset
sums", SODA 2009. The h most probable ids are kept as they are; the other K - h are drawn with
probability p_i / tau each and all stand for tau = (1 - head) / (K - h), so the tail costs no values
and the sum is 1. With E[t] = p the gradient q - t of the forward KL is unbiased too.

The vocabulary is never sorted: sums over blocks of ids tell in which block a draw falls, and only
the blocks that were hit are looked into.

Layout of a position: H codes of `head_bits`, then K packed ids. Ids 0 .. h-1 are the head, in
falling order of probability; the codes of places h .. H-1 say "no value of its own".
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from kdscale.cache.codecs import bits
from kdscale.cache.codecs.base import refuse_nan, usable
from kdscale.types import SparseTargets

_BLOCK = 64

# Elements of one working tensor. On a CPU it should stay in the last-level cache; on a GPU larger
# pieces keep the launches few.
_CHUNK_ELEMENTS = {"cpu": 1 << 22}
_CHUNK_ELEMENTS_GPU = 1 << 26


@dataclass(frozen=True)
class Varopt:
    """K ids, at most `head` of them with a probability of their own, in `head_bits` bits."""

    k: int
    head: int
    head_bits: int
    vocab_size: int

    @property
    def bytes_per_position(self) -> int:
        return self._code_bytes + bits.packed_bytes(self.k, bits.width_for(self.vocab_size))

    def encode(self, logits: Tensor, uniforms: Tensor) -> Tensor:
        """See `Codec.encode`. The first uniform rounds the head, the second draws the tail."""
        logits = usable(logits, self.vocab_size)
        budget = _CHUNK_ELEMENTS.get(logits.device.type, _CHUNK_ELEMENTS_GPU)
        positions = max(1, budget // max(self.vocab_size, self.k * _BLOCK))
        parts = [
            self._encode_chunk(some_logits, some_uniforms)
            for some_logits, some_uniforms in zip(
                logits.split(positions), uniforms.split(positions), strict=True
            )
        ]
        return torch.cat(parts)

    def decode(self, payload: Tensor) -> SparseTargets:
        """[..., bytes] uint8 -> K ids and probabilities that sum to 1. An id may stand twice."""
        codes = bits.unpack(payload[..., : self._code_bytes], self.head, self.head_bits)
        width = bits.width_for(self.vocab_size)
        ids = bits.unpack(payload[..., self._code_bytes :], self.k, width)
        in_tail = codes == self._steps + 1
        own = codes.masked_fill(in_tail, 0)
        slots = self.k - self.head + in_tail.sum(-1, keepdim=True)
        tau = (self._steps - own.sum(-1, keepdim=True)) / (self._steps * slots)
        head = torch.where(in_tail, tau, own / self._steps)
        tail = tau.expand(*tau.shape[:-1], self.k - self.head)
        return SparseTargets(ids, torch.cat([head, tail], dim=-1))

    def describe(self) -> dict[str, Any]:
        return {
            "kind": "varopt",
            "k": self.k,
            "head": self.head,
            "head_bits": self.head_bits,
            "vocab_size": self.vocab_size,
        }

    @property
    def _code_bytes(self) -> int:
        return bits.packed_bytes(self.head, self.head_bits)

    @property
    def _steps(self) -> int:
        """S: a head value is a multiple of 1/S. Code S + 1 marks a tail id."""
        return 2**self.head_bits - 2

    def _encode_chunk(self, logits: Tensor, uniforms: Tensor) -> Tensor:
        """`encode`, for as many positions as fit the working memory."""
        probs = logits.float().softmax(-1)
        refuse_nan(probs[:, 0])
        blocks = torch.nn.functional.pad(probs, (0, -self.vocab_size % _BLOCK))
        blocks = blocks.unflatten(-1, (-1, _BLOCK))
        values, head_ids = _largest(blocks, self.head + 1)
        heads = _head_size(values, self.k)
        in_head = torch.arange(self.head, device=logits.device) < heads
        head_values = values[:, : self.head].where(in_head, 0.0)

        tail = _without(blocks, head_ids[:, : self.head], in_head)
        tail_sums = tail.sum(-1).double().cumsum(-1)
        codes = self._round(head_values, tail_sums[:, -1:], uniforms[:, :1])

        slots = torch.arange(self.k, device=logits.device)
        draws = (slots - heads).clamp(min=0) + uniforms[:, 1:]
        points = draws / (self.k - heads) * tail_sums[:, -1:]
        tail_ids = _locate(tail, tail_sums, points).clamp(max=self.vocab_size - 1)
        own_ids = head_ids.gather(-1, slots.clamp(max=self.head).expand_as(tail_ids))
        ids = torch.where(slots < heads, own_ids, tail_ids)
        return torch.cat(
            [
                bits.pack(codes.masked_fill(~in_head, self._steps + 1), self.head_bits),
                bits.pack(ids, bits.width_for(self.vocab_size)),
            ],
            dim=-1,
        )

    def _round(self, head_values: Tensor, tail_mass: Tensor, uniform: Tensor) -> Tensor:
        """Head values [P, H] float64 (0 past the head) -> codes [P, H], multiples of 1/S.

        All running sums of a position are rounded with one uniform [P, 1]: each code keeps its
        mean, and the head as a whole never exceeds 1.
        """
        sums = head_values.cumsum(-1)
        share = sums / (sums[:, -1:] + tail_mass)
        # A uniform next to 1 would round S + u up to S + 1.
        rounded = (share * self._steps + uniform).floor().clamp(max=self._steps).long()
        return rounded.diff(dim=-1, prepend=torch.zeros_like(rounded[:, :1]))


def _largest(blocks: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The `count` largest of [P, N, block] float32 in falling order, as float64, and their ids.

    They lie in the blocks with the largest maxima: finding those reads the vocabulary once at the
    speed of memory, which a top-k over all of it does not.
    """
    chosen = blocks.amax(-1).topk(min(count, blocks.shape[1]), dim=-1).indices
    inside = _rows(blocks, chosen).flatten(1).topk(count, dim=-1)
    ids = chosen.gather(-1, inside.indices // _BLOCK) * _BLOCK + inside.indices % _BLOCK
    return inside.values.double(), ids


def _head_size(values: Tensor, k: int) -> Tensor:
    """h [P, 1]: the smallest with p_(h+1) <= tau_h = (1 - sum of the h largest) / (k - h), else H.

    values: the H + 1 largest probabilities, [P, H + 1] float64, falling.
    """
    sizes = torch.arange(values.shape[-1], device=values.device)
    before = values.cumsum(-1) - values
    # Rounding can leave less than nothing; an id of probability 0 must not count as above it.
    tau = (1 - before).clamp(min=0) / (k - sizes)
    fits = (values <= tau) | (sizes == sizes[-1])
    return fits.int().argmax(-1, keepdim=True)


def _without(blocks: Tensor, head_ids: Tensor, in_head: Tensor) -> Tensor:
    """`blocks` [P, N, block] with the head's ids [P, H] at 0, in place (where `in_head` [P, H])."""
    flat = blocks.flatten(1)
    kept = flat.gather(-1, head_ids).masked_fill(in_head, 0.0)
    flat.scatter_(-1, head_ids, kept)
    return flat.view_as(blocks)


def _locate(tail: Tensor, sums: Tensor, points: Tensor) -> Tensor:
    """The ids [P, K] on which `points` [P, K] of the tail's running sum fall.

    tail: [P, N, block] float32; sums: [P, N] float64, running sums over blocks. An id without mass
    is never hit, unless the tail has no mass at all.
    """
    points = points.minimum(_below(sums[:, -1:]))
    hit = torch.searchsorted(sums, points, right=True).clamp(max=sums.shape[-1] - 1)
    before = torch.nn.functional.pad(sums, (1, 0)).gather(-1, hit)
    inside = _rows(tail, hit).double().cumsum(-1)
    # The block's own sum was rounded to float32, so the rest of a point may overshoot its end.
    rest = (points - before)[..., None].minimum(_below(inside[..., -1:]))
    place = torch.searchsorted(inside, rest, right=True).squeeze(-1)
    return hit * _BLOCK + place


def _rows(blocks: Tensor, which: Tensor) -> Tensor:
    """Of each position's blocks [P, N, block] those at `which` [P, K]: [P, K, block]."""
    return blocks[torch.arange(len(blocks), device=blocks.device)[:, None], which]


def _below(bound: Tensor) -> Tensor:
    """The largest float64 under each `bound` >= 0; 0 under 0."""
    return torch.nextafter(bound, torch.zeros_like(bound))
