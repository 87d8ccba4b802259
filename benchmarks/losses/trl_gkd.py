"""TRL's `generalized_jsd_loss`, as its GKD trainer calls it; beta 0 is the forward KL.

There is no cross-entropy in it, so it does less than the others.
"""

from dataclasses import dataclass

from torch import Tensor
from trl.experimental.gkd import GKDTrainer

from benchmarks.losses.dense import DenseTeacher
from benchmarks.losses.problem import Problem


@dataclass(frozen=True)
class Trl(DenseTeacher):
    """The cheapest of its betas: others mix the two distributions first."""

    kd_weight: float = 1.0
    packages: tuple[str, ...] = ("trl", "torch")

    def loss(self, problem: Problem, given: Tensor) -> Tensor:
        """Mean over positions."""
        logits = problem.hidden @ problem.weight.T
        loss: Tensor = GKDTrainer.generalized_jsd_loss(
            logits[None], given[None], labels=problem.labels[None], beta=0.0
        )
        return loss


ARMS = {"TRL": Trl()}
