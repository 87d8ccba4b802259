"""DistillKit's sparse forward KL, written from its published formulas, in its two modes.

p is the student's softmax over the vocabulary, a the mass of the K listed ids, T = 1:

    zero     t' = t / a,    L = sum_K t' (log t' - log p)
    bucket   L = sum_K t (log t - log p) + (1 - a) (log(1 - a) - log(1 - sum_K p)),
             both remainders kept within [1e-8, 1 - 1e-8]

beside the cross-entropy, as its trainer adds it. log p is taken at the listed ids alone, from a
logsumexp, which is the least that these formulas allow on logits [P, V].
"""

from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.losses.problem import Problem

_SMALLEST = 1e-8


class Listed(NamedTuple):
    """The teacher's K most probable ids."""

    log_probs: Tensor  # [P, K] float32
    ids: Tensor  # [P, K] int64


@dataclass(frozen=True)
class DistillKit:
    """128 ids, as its README recommends."""

    bucket: bool
    k: int = 128
    kd_weight: float = 0.5
    packages: tuple[str, ...] = ("torch",)

    def prepare(self, problem: Problem) -> Listed:
        """Exact values: what its compression loses does not matter here."""
        return _listed(problem, self.k)

    def loss(self, problem: Problem, given: Listed) -> Tensor:
        """Mean over positions."""
        logits = problem.hidden @ problem.weight.T
        log_p = logits.gather(-1, given.ids) - logits.logsumexp(-1, keepdim=True)
        log_t = given.log_probs if self.bucket else given.log_probs.log_softmax(-1)
        divergence = (log_t.exp() * (log_t - log_p)).sum(-1)
        if self.bucket:
            teacher, student = (_remainder(each) for each in (log_t, log_p))
            divergence = divergence + teacher * (teacher.log() - student.log())
        cross_entropy = F.cross_entropy(logits, problem.labels)
        return self.kd_weight * divergence.mean() + (1 - self.kd_weight) * cross_entropy

    def target(self, problem: Problem, given: Listed) -> Tensor:
        """What the bucket has is left out."""
        dense = torch.zeros(len(problem.labels), problem.vocab_size, dtype=torch.float64)
        log_t = given.log_probs.double()
        return dense.scatter_(
            -1, given.ids, (log_t if self.bucket else log_t.log_softmax(-1)).exp()
        )


@lru_cache(maxsize=1)
def _listed(problem: Problem, k: int) -> Listed:
    found = [
        problem.teacher_logits(part).log_softmax(-1).topk(k, dim=-1) for part in problem.slices()
    ]
    return Listed(
        torch.cat([part.values for part in found]), torch.cat([part.indices for part in found])
    )


def _remainder(log_probs: Tensor) -> Tensor:
    return (1 - log_probs.exp().sum(-1)).clamp(_SMALLEST, 1 - _SMALLEST)


ARMS = {"DistillKit, zero": DistillKit(bucket=False), "DistillKit, bucket": DistillKit(bucket=True)}
