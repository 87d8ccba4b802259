"""Formats of rivals for a distribution, rebuilt from their documentation to be measured.

DistillKit (https://github.com/arcee-ai/DistillKit, README and `DistributionQuantizationConfig` at
a61c2e7): the K largest log-probabilities, falling. The first `exact` stand in bfloat16, the others
as the float32 coefficients of a curve through them over their rank t, by least squares; K packed
ids. Its losses know two ways to treat the mass left over: `zero`, the default, renormalises the K
to 1; `symmetric_uniform` makes one bucket of it. The original fits in the dtype it is given, which
is float32: with powers up to t^4 over 112 ranks it then misses log-probabilities by about a nat
(checked against the original's code), where float64 misses them by 0.02. Both are measured, and
float64 is what others are held against.

Megatron-LM (docs/user-guide/features/offline_logits_distillation.md, format 2): the K largest
log-probabilities in float16, the ids' low 16 bits and the packed 17th; always with a bucket; zstd.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from kdscale.types import SparseTargets


class Largest(NamedTuple):
    """The K largest log-probabilities of each position, falling, and their ids: [P, K] each."""

    values: Tensor
    indices: Tensor


# Singular values at or below it count as 0, as in the original.
_TOLERANCE = 1e-5
_SMALLEST_MASS = 1e-8

CURVES: dict[str, Callable[[Tensor], Tensor]] = {
    "1": torch.ones_like,
    "t": lambda t: t,
    "t^2": lambda t: t**2,
    "t^3": lambda t: t**3,
    "t^4": lambda t: t**4,
    "sqrt t": torch.sqrt,
}


@dataclass(frozen=True)
class DistillKit:
    """K log-probabilities: `exact` of them in bfloat16, a curve of `terms` for the rest."""

    k: int
    exact: int
    terms: tuple[str, ...]
    vocab_size: int
    ghost: bool = False
    fit: torch.dtype = torch.float64

    @property
    def bytes_per_position(self) -> int:
        """`DistributionQuantizationConfig.total_bits()` without residual bins, in bytes."""
        id_bits = (self.vocab_size - 1).bit_length()
        return 2 * self.exact + 4 * len(self.terms) + (self.k * id_bits + 7) // 8

    def targets(self, largest: Largest) -> SparseTargets:
        """Return the targets of its loss: [P, K] ids and probabilities."""
        values, ids = largest
        kept = self.restore(values)
        log_mass = kept.logsumexp(-1)
        if not self.ghost:
            return SparseTargets(ids, (kept - log_mass[:, None]).exp())
        # Where the curve lifts the sum above 1, the original renormalises.
        probs = (kept - log_mass.clamp_min(0)[:, None]).exp()
        rest = (1 - probs.sum(-1)).clamp(_SMALLEST_MASS, 1 - _SMALLEST_MASS)
        return SparseTargets(ids, probs, rest)

    def at_rest(self, largest: Sequence[Largest]) -> float:
        """Return the stored bytes: Parquet does not compress them (0.4% more, measured)."""
        return self.bytes_per_position

    def restore(self, values: Tensor) -> Tensor:
        """Return the [P, K] float32 falling log-probabilities that its bytes give back."""
        exact, rest = values[:, : self.exact], values[:, self.exact :]
        left, scale, right = self._inverse
        coefficients = ((rest.to(self.fit) @ left) * scale @ right).float()
        curve = (self._curves.float() * coefficients[:, None, :]).sum(-1)
        return torch.cat([exact.bfloat16().float(), curve], dim=-1)

    @cached_property
    def _curves(self) -> Tensor:
        """[K - exact, terms]."""
        t = torch.arange(self.k - self.exact, dtype=self.fit)
        return torch.stack([CURVES[term](t) for term in self.terms], dim=-1)

    @cached_property
    def _inverse(self) -> tuple[Tensor, Tensor, Tensor]:
        """Pseudo-inverse of the curves: U, inverted singular values and V^T, as in the original."""
        left, values, right = torch.linalg.svd(self._curves, full_matrices=False)
        return left, torch.where(values > _TOLERANCE, 1 / values, 0.0), right


def recommended(vocab_size: int) -> DistillKit:
    """Return the README's "recommended configuration": 312 bytes at 16 bits an id."""
    return DistillKit(128, 16, tuple(CURVES), vocab_size)


def budget_pick(vocab_size: int) -> DistillKit:
    """Return the README's "budget pick": 114 bytes at 16 bits an id."""
    return DistillKit(50, 1, ("1", "t", "sqrt t"), vocab_size)


@dataclass(frozen=True)
class Megatron:
    """K log-probabilities in float16 and a bucket."""

    k: int

    @property
    def bytes_per_position(self) -> int:
        """Two bytes for a value, two for an id and a bit."""
        return 4 * self.k + (self.k + 7) // 8

    def targets(self, largest: Largest) -> SparseTargets:
        """Return [P, K] ids, probabilities and the bucket."""
        values, ids = largest
        probs = values.half().float().exp()
        rest = (1 - probs.sum(-1)).clamp(_SMALLEST_MASS, 1 - _SMALLEST_MASS)
        return SparseTargets(ids, probs, rest)

    def at_rest(self, largest: Sequence[Largest]) -> float:
        """Return the bytes a position after zstd, level 3, as one micro-batch."""
        values = torch.cat([part.values for part in largest])
        ids = torch.cat([part.indices for part in largest])
        columns = (
            values.half().numpy(),
            (ids & 0xFFFF).numpy().astype("<u2"),
            np.packbits((ids >> 16).numpy().astype(np.bool_)),
        )
        packed = b"".join(column.tobytes() for column in columns)
        return len(pa.Codec("zstd", 3).compress(packed, asbytes=True)) / len(ids)
