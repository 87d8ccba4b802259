"""Liger-Kernel's distillation loss in chunks, in PyTorch: its Triton kernels need a GPU.

It is the one rival that fuses head and loss. Its teacher is given as hidden states and a weight
(64 wide here), so it multiplies them too. beta 0 is the forward KL.
Compiled is its default; both are measured.
"""

from dataclasses import dataclass

from liger_kernel.chunked_loss import LigerFusedLinearJSDLoss
from torch import Tensor

from benchmarks.losses.problem import Problem


@dataclass(frozen=True)
class Liger:
    """Chunks of 1,024 positions, as by default."""

    compiled: bool
    kd_weight: float = 0.5
    packages: tuple[str, ...] = ("liger-kernel", "torch")

    def prepare(self, problem: Problem) -> None:
        """The problem has it all."""

    def loss(self, problem: Problem, given: None) -> Tensor:
        """Mean over positions."""
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
        """The whole distribution."""
        return problem.teacher_logits().double().softmax(-1)


ARMS = {"Liger-Kernel": Liger(compiled=False), "Liger-Kernel, compiled": Liger(compiled=True)}
