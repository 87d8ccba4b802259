"""What a person writes in PyTorch: logits, log_softmax, KL to a dense teacher, cross-entropy."""

from dataclasses import dataclass

from torch import Tensor
from torch.nn import functional as F

from benchmarks.losses.problem import Problem


class DenseTeacher:
    """Given: the teacher's logits [P, V], which an online teacher would have left there."""

    def prepare(self, problem: Problem) -> Tensor:
        """[P, V] float32."""
        return problem.teacher_logits()

    def target(self, problem: Problem, given: Tensor) -> Tensor:
        """The whole distribution."""
        return given.double().softmax(-1)


@dataclass(frozen=True)
class Dense(DenseTeacher):
    """One log_softmax for both losses."""

    kd_weight: float = 0.5
    packages: tuple[str, ...] = ("torch",)

    def loss(self, problem: Problem, given: Tensor) -> Tensor:
        """Mean over positions."""
        log_q = F.log_softmax(problem.hidden @ problem.weight.T, dim=-1)
        log_p = F.log_softmax(given, dim=-1)
        divergence = F.kl_div(log_q, log_p, reduction="batchmean", log_target=True)
        cross_entropy = F.nll_loss(log_q, problem.labels)
        return self.kd_weight * divergence + (1 - self.kd_weight) * cross_entropy


ARMS = {"dense PyTorch": Dense()}
