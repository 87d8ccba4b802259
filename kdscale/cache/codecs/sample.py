"""Random-Sampling Knowledge Distillation: N independent draws of a position, with replacement.

Anshumann et al., "Sparse Logit Sampling: Accelerating Knowledge Distillation in LLMs"
(arXiv 2503.16870, ACL 2025). Ids are drawn from q_i ~ p_i^tau, and the target of an id that came c
times is c/N * p_i/q_i. At tau = 1 that is c/N, which sums to 1. With another tau it sums to 1 on
average only: it is never renormalised, because that would bias it.

Draws, not counts, are stored: N sorted ids, in which a count is how often an id occurs.

Layout of a position: where tau is not 1, the weight p_i/q_i of each draw in float16 (rounded by at
most 2^-11 of it or, under 6.1e-5, by 3e-8; cut at 65504); then N ids of 2 or 3 bytes, rising.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from kdscale.cache.codecs.chunked import ChunkedCodec
from kdscale.cache.codecs.distribution import Distribution
from kdscale.cache.codecs.id_bytes import from_bytes, id_bytes, to_bytes
from kdscale.cache.codecs.vocab_blocks import BLOCK, locate, running_sums
from kdscale.types import SparseTargets

_LARGEST_WEIGHT = torch.finfo(torch.float16).max


@dataclass(frozen=True)
class Sample(ChunkedCodec):
    """N = `draws` ids from p^tau, with their importance weights where tau is not 1."""

    draws: int
    tau: float
    vocab_size: int

    @property
    def bytes_per_position(self) -> int:
        """See `Codec.bytes_per_position`."""
        return self.prefix_bytes + self.draws * id_bytes(self.vocab_size)

    @property
    def streams(self) -> int:
        """One uniform a draw."""
        return self.draws

    @property
    def prefix_bytes(self) -> int:
        """Those of the weights."""
        return 2 * self.draws if self._weighted else 0

    @property
    def k(self) -> int:
        """See `SampledIds.k`."""
        return self.draws

    @property
    def blocks_read(self) -> int:
        """See `ChunkedCodec.blocks_read`."""
        return self.draws

    def decode(self, payload: Tensor) -> SparseTargets:
        """[..., bytes] uint8 -> N ids, which may repeat, and 1/N or weight/N for each."""
        weights, held = payload.split(
            [self.prefix_bytes, payload.shape[-1] - self.prefix_bytes], dim=-1
        )
        ids = from_bytes(held, id_bytes(self.vocab_size))
        if not self._weighted:
            return SparseTargets(ids, torch.full_like(ids, 1 / self.draws, dtype=torch.float32))
        # A slice of one position counts as contiguous, yet may start at an odd byte.
        aligned = weights.clone(memory_format=torch.contiguous_format)
        return SparseTargets(ids, aligned.view(torch.float16).float() / self.draws)

    def ordered_ids(self, payload: Tensor) -> Tensor:
        """[P, bytes] uint8 -> [P] int64: none, or all where each id has a weight at its place."""
        ordered = self.draws if self._weighted else 0
        return torch.full((len(payload),), ordered, dtype=torch.int64, device=payload.device)

    def describe(self) -> dict[str, Any]:
        """See `Codec.describe`."""
        return {
            "kind": "sample",
            "draws": self.draws,
            "tau": self.tau,
            "vocab_size": self.vocab_size,
        }

    def select(self, p: Distribution, uniforms: Tensor) -> tuple[Tensor, ...]:
        """Ids [C, N] of a chunk and, where tau is not 1, the logs of their weights [C, N]."""
        if not self._weighted:
            return (self._draw(p.blocks, running_sums(p.sums), uniforms),)
        scaled = p.logits * self.tau
        blocks = scaled.softmax(-1).unflatten(-1, (-1, BLOCK))
        sums = running_sums(blocks.sum(-1))
        ids = self._draw(blocks, sums, uniforms)
        log_q = (blocks.flatten(1).gather(-1, ids) / sums[:, -1:]).log()
        return ids, (p.log_probs(ids) - log_q).float()

    def pack(self, *selected: Tensor) -> Tensor:
        """See `ChunkedCodec.pack`."""
        ids, *log_weights = selected
        held = to_bytes(ids, id_bytes(self.vocab_size))
        if not log_weights:
            return held
        weights = log_weights[0].exp().clamp(max=_LARGEST_WEIGHT).half()
        return torch.cat([weights.view(torch.uint8), held], dim=-1)

    @property
    def _weighted(self) -> bool:
        return self.tau != 1.0

    def _draw(self, blocks: Tensor, sums: Tensor, uniforms: Tensor) -> Tensor:
        """[C, N] ids, rising, by inverting the running sums of `blocks`."""
        ids = locate(blocks, sums, uniforms * sums[:, -1:]).clamp(max=self.vocab_size - 1)
        return ids.sort(-1).values
