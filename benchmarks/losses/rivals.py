"""Losses of other libraries, each imported where it is used: they live in two environments.

With beta 0 the generalised Jensen-Shannon divergence is the forward KL, the cheapest of its betas.
"""

from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.losses.problem import Problem

_SMALLEST = 1e-8


class DenseTeacher:
    """Teacher given as logits [P, V], as an online teacher would have left them."""

    def prepare(self, problem: Problem) -> Tensor:
        """Return the teacher's logits, [P, V] float32."""
        return problem.teacher_logits()

    def target(self, problem: Problem, given: Tensor) -> Tensor:
        """Return the whole distribution."""
        return given.double().softmax(-1)


@dataclass(frozen=True)
class Dense(DenseTeacher):
    """Plain PyTorch: logits, one log_softmax for both losses."""

    kd_weight: float = 0.5
    packages: tuple[str, ...] = ("torch",)

    def loss(self, problem: Problem, given: Tensor) -> Tensor:
        """Return the mean over positions."""
        log_q = F.log_softmax(problem.hidden @ problem.weight.T, dim=-1)
        log_p = F.log_softmax(given, dim=-1)
        divergence = F.kl_div(log_q, log_p, reduction="batchmean", log_target=True)
        cross_entropy = F.nll_loss(log_q, problem.labels)
        return self.kd_weight * divergence + (1 - self.kd_weight) * cross_entropy


@dataclass(frozen=True)
class DeepSpeed(DenseTeacher):
    """DeepSpeed's loss of on-policy distillation. It has no cross-entropy, so it does less."""

    kd_weight: float = 1.0
    packages: tuple[str, ...] = ("deepspeed", "torch")

    def loss(self, problem: Problem, given: Tensor) -> Tensor:
        """Return the mean over positions."""
        from deepspeed.runtime.rollout import generalized_jsd_loss

        logits = problem.hidden @ problem.weight.T
        mask = torch.ones(1, len(problem.labels), dtype=torch.bool)
        loss: Tensor = generalized_jsd_loss(logits[None], given[None], mask, beta=0.0).loss
        return loss


@dataclass(frozen=True)
class Trl(DenseTeacher):
    """The loss of TRL's GKD trainer. It has no cross-entropy, so it does less."""

    kd_weight: float = 1.0
    packages: tuple[str, ...] = ("trl", "torch")

    def loss(self, problem: Problem, given: Tensor) -> Tensor:
        """Return the mean over positions."""
        from trl.experimental.gkd import GKDTrainer

        logits = problem.hidden @ problem.weight.T
        loss: Tensor = GKDTrainer.generalized_jsd_loss(
            logits[None], given[None], labels=problem.labels[None], beta=0.0
        )
        return loss


@dataclass(frozen=True)
class Liger:
    """Liger-Kernel's distillation loss in chunks of 1,024 positions, in PyTorch.

    Its Triton kernels need a GPU. It is the one rival that fuses head and loss. Its teacher is
    given as hidden states and a weight (64 wide here), so it multiplies them too. Its default is
    compiled.
    """

    compiled: bool
    kd_weight: float = 0.5
    packages: tuple[str, ...] = ("liger-kernel", "torch")

    def prepare(self, problem: Problem) -> None:
        """Prepare nothing: the problem has the hidden states."""

    def loss(self, problem: Problem, given: None) -> Tensor:
        """Return the mean over positions."""
        from liger_kernel.chunked_loss import LigerFusedLinearJSDLoss

        function = LigerFusedLinearJSDLoss(
            weight_hard_loss=1 - self.kd_weight,
            weight_soft_loss=self.kd_weight,
            beta=0.0,
            compiled=self.compiled,
        )
        loss: Tensor = function(
            problem.hidden,
            problem.weight,
            problem.teacher_hidden,
            problem.teacher_weight,
            problem.labels,
        )
        return loss

    def target(self, problem: Problem, given: None) -> Tensor:
        """Return the whole distribution."""
        return problem.teacher_logits().double().softmax(-1)


class Listed(NamedTuple):
    """The teacher's K most probable ids."""

    log_probs: Tensor  # [P, K] float32
    ids: Tensor  # [P, K] int64


@dataclass(frozen=True)
class DistillKit:
    """DistillKit's sparse forward KL of 128 ids, from its published formulas, in its two modes.

    p is the student's softmax over the vocabulary, a the mass of the K listed ids, T = 1:

        zero     t' = t / a,    L = sum_K t' (log t' - log p)
        bucket   L = sum_K t (log t - log p) + (1 - a) (log(1 - a) - log(1 - sum_K p)),
                 both remainders kept within [1e-8, 1 - 1e-8]

    beside the cross-entropy, as its trainer adds it. log p is taken at the listed ids alone, from a
    logsumexp: the least that these formulas allow on logits [P, V].
    """

    bucket: bool
    k: int = 128
    kd_weight: float = 0.5
    packages: tuple[str, ...] = ("torch",)

    def prepare(self, problem: Problem) -> Listed:
        """Return exact values: the loss of its compression does not matter here."""
        return _listed(problem, self.k)

    def loss(self, problem: Problem, given: Listed) -> Tensor:
        """Return the mean over positions."""
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
        """Return the listed ids alone."""
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


LOSSES: dict[str, Any] = {
    "dense PyTorch": Dense(),
    "DeepSpeed": DeepSpeed(),
    "DistillKit, zero": DistillKit(bucket=False),
    "DistillKit, bucket": DistillKit(bucket=True),
    "TRL": Trl(),
    "Liger-Kernel": Liger(compiled=False),
    "Liger-Kernel, compiled": Liger(compiled=True),
}
