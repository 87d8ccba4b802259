"""The work of all losses, and its gradients by definition, in float64.

P positions of a student's hidden states [P, D] and its head's weight [V, D], and a teacher's. The
teacher is narrow, so that multiplying its head too costs little. A loss is the mean over positions
of w KL(t || q) + (1 - w) cross-entropy, for its own w and its own t, the targets it is given.
"""

from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

# The logits' standard deviation is a few units, as a language model's.
_LOGIT_SCALE = 4.0
_TEACHER_WIDTH = 64
_SLICE = 128


@dataclass(frozen=True, eq=False)
class Problem:
    """One problem; hidden states and weight are leaves, whose gradients are wanted."""

    hidden: Tensor  # [P, D] float32
    weight: Tensor  # [V, D] float32
    labels: Tensor  # [P] int64
    teacher_hidden: Tensor  # [P, E] float32
    teacher_weight: Tensor  # [V, E] float32

    @property
    def vocab_size(self) -> int:
        """Size of the vocabulary, V."""
        return len(self.weight)

    @property
    def gradient_bytes(self) -> int:
        """Size of the result itself, which no loss can do without."""
        return 4 * (self.hidden.numel() + self.weight.numel())

    def slices(self) -> list[slice]:
        """Return slices of a few positions, for preparation."""
        return [slice(start, start + _SLICE) for start in range(0, len(self.labels), _SLICE)]

    @torch.no_grad()
    def teacher_logits(self, part: slice = slice(None)) -> Tensor:
        """Return the teacher's logits of some positions or all, [P, V] float32."""
        return self.teacher_hidden[part] @ self.teacher_weight.T


class Loss(Protocol):
    """One way to get from hidden states and weight to the loss and both gradients."""

    packages: tuple[str, ...]
    kd_weight: float

    def prepare(self, problem: Problem) -> Any:
        """Return the teacher's targets in its own form; neither timed nor counted."""
        ...

    def loss(self, problem: Problem, given: Any) -> Tensor:
        """Return the mean over positions, for autograd to differentiate."""
        ...

    def target(self, problem: Problem, given: Any) -> Tensor:
        """Return t, [P, V] float64; ids of probability 0 have the mass it lacks, as one."""
        ...


def make_problem(positions: int, vocab_size: int, width: int) -> Problem:
    """Return the problem of these sizes, always the same one."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(vocab_size, (positions,), generator=generator)
    tensors = [
        torch.randn(count, size, generator=generator).mul_(scale)
        for size in (width, _TEACHER_WIDTH)
        for count, scale in ((positions, 1.0), (vocab_size, _LOGIT_SCALE / size**0.5))
    ]
    hidden, weight, teacher_hidden, teacher_weight = tensors
    return Problem(
        hidden.requires_grad_(), weight.requires_grad_(), labels, teacher_hidden, teacher_weight
    )


def gradient_error(loss: Loss, problem: Problem) -> float:
    """Return the relative error of a loss's gradients against its objective in float64."""
    given = loss.prepare(problem)
    loss.loss(problem, given).backward()
    leaves = [leaf.detach().double().requires_grad_() for leaf in (problem.hidden, problem.weight)]
    log_q = (leaves[0] @ leaves[1].T).log_softmax(-1)
    t = loss.target(problem, given)
    listed = (t > 0).double()
    rest = (1 - t.sum(-1)).clamp_min(0)
    others = (1 - (listed * log_q.exp()).sum(-1)).clamp_min(1e-12)
    distillation = -(t * log_q).sum(-1) - rest * others.log()
    cross_entropy = F.nll_loss(log_q, problem.labels, reduction="none")
    w = loss.kd_weight
    (w * distillation + (1 - w) * cross_entropy).mean().backward()
    errors = []
    for found, exact in zip((problem.hidden, problem.weight), leaves, strict=True):
        assert found.grad is not None
        assert exact.grad is not None
        errors.append(float((found.grad - exact.grad).norm() / exact.grad.norm()))
    return max(errors)
