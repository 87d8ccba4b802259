"""DeepSpeed's `generalized_jsd_loss`, of its on-policy distillation; beta 0 is the forward KL.

There is no cross-entropy in it, so it does less than the others.
"""

from dataclasses import dataclass

import torch
from deepspeed.runtime.rollout import generalized_jsd_loss
from torch import Tensor

from benchmarks.losses.dense import DenseTeacher
from benchmarks.losses.problem import Problem


@dataclass(frozen=True)
class DeepSpeed(DenseTeacher):
    """Over the whole vocabulary."""

    kd_weight: float = 1.0
    packages: tuple[str, ...] = ("deepspeed", "torch")

    def loss(self, problem: Problem, given: Tensor) -> Tensor:
        """Mean over positions."""
        logits = problem.hidden @ problem.weight.T
        mask = torch.ones(1, len(problem.labels), dtype=torch.bool)
        loss: Tensor = generalized_jsd_loss(logits[None], given[None], mask, beta=0.0).loss
        return loss


ARMS = {"DeepSpeed": DeepSpeed()}
