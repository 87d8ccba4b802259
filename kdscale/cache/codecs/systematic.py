"""Systematic sampling: N draws of a position, evenly spaced over the running sum of p.

Madow and Madow, "On the Theory of Systematic Sampling", Annals of Mathematical Statistics 15, 1944;
particle filters know it as low-variance resampling. One uniform u sets all draws, at (u + j) / N
for j = 0 .. N-1, so an id comes N p_i times, rounded down or up: on average it has p_i, the sum is
1, and every draw stands for 1/N.

So distinct ids go where the teacher is uncertain: with a fixed number of them (`varopt`), positions
where it knows the answer have ids to spare, and those where it does not have too few. Draws that
repeat have a gap of 0 at rest, which takes less than another id.

Layout of a position: N packed ids, rising.
"""

from typing import Any

import torch
from torch import Tensor

from kdscale.cache.codecs.distribution import Distribution
from kdscale.cache.codecs.sample import Sample


class Systematic(Sample):
    """N = `draws` ids, of which an id is N p_i, rounded down or up."""

    def __init__(self, draws: int, vocab_size: int) -> None:
        super().__init__(draws, 1.0, vocab_size)

    @property
    def streams(self) -> int:
        """One uniform for all draws."""
        return 1

    def describe(self) -> dict[str, Any]:
        return {"kind": "systematic", "draws": self.draws, "vocab_size": self.vocab_size}

    def select(self, p: Distribution, uniforms: Tensor) -> tuple[Tensor, ...]:
        """Ids [C, N] of a chunk."""
        places = torch.arange(self.draws, device=uniforms.device)
        return super().select(p, (places + uniforms) / self.draws)
