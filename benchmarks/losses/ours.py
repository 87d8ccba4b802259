"""Losses of kdscale: head and loss in one, on the bytes of its cache or on labels alone.

Decoding the cache's bytes is part of what is measured.
"""

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from benchmarks.losses.problem import Problem
from kdscale.cache.codecs import Codec, make_codec
from kdscale.config.cache import VaroptCodec
from kdscale.losses.fused import Objective, head_and_loss
from kdscale.types import Head, SparseTargets


@dataclass(frozen=True)
class Cached:
    """Targets as a cache holds them."""

    codec: Codec
    payload: Tensor  # [P, bytes] uint8

    def at(self, part: slice, logits: Tensor | None = None) -> SparseTargets:
        """Return the targets of some positions, whatever the student's `logits` are."""
        found = self.codec.decode(self.payload[part])
        assert isinstance(found, SparseTargets)
        return found


@dataclass(frozen=True)
class Fused:
    """`varopt` with 12 ids; without them, plain cross-entropy."""

    kd_weight: float
    packages: tuple[str, ...] = ("kdscale", "torch")

    def prepare(self, problem: Problem) -> Cached | None:
        """Return the encoded targets, or None for cross-entropy alone."""
        if not self.kd_weight:
            return None
        return _capture(problem)

    def loss(self, problem: Problem, given: Cached | None) -> Tensor:
        """Return the mean over positions."""
        sums = head_and_loss(
            problem.hidden,
            Head(problem.weight, None, problem.vocab_size),
            problem.labels,
            None if given is None else given.at,
            Objective(self.kd_weight),
        )
        return sums.objective / len(problem.labels)

    def target(self, problem: Problem, given: Cached | None) -> Tensor:
        """Return the targets [P, V] float64; the probabilities of an id listed twice add up."""
        dense = torch.zeros(len(problem.labels), problem.vocab_size, dtype=torch.float64)
        if given is None:
            return dense
        found = given.at(slice(None))
        return dense.scatter_add_(-1, found.ids, found.probs.double())


@lru_cache(maxsize=1)
def _capture(problem: Problem) -> Cached:
    codec = make_codec(VaroptCodec(k=12, head=4), problem.vocab_size)
    generator = torch.Generator().manual_seed(1)
    payloads = []
    for part in problem.slices():
        logits = problem.teacher_logits(part)
        noise = torch.rand(len(logits), codec.streams, generator=generator, dtype=torch.float64)
        payloads.append(codec.encode(logits, noise).payload)
    return Cached(codec, torch.cat(payloads))


LOSSES = {
    "kdscale": Fused(0.5),
    "kdscale, targets alone": Fused(1.0),
    "kdscale, cross-entropy": Fused(0.0),
}
