"""Output head and loss in one, over chunks of positions: distilling costs what cross-entropy costs.

The logits of a batch are its largest array by far: 2,048 positions of 151,936 ids are 1.2 GB, and
autograd keeps several of that size. Here a chunk of positions goes from hidden states to logits to
gradients in two buffers that all chunks share, and the gradient is known when the value is
(`chunk.py`), so that all of the time goes into three matrix products.

The technique is that of Liger-Kernel (Hsu et al., arXiv:2410.10989), for hidden states that come
with cached targets.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from kdscale.losses import kernels
from kdscale.losses.chunk import Objective, chunk_loss
from kdscale.losses.chunk_logits import Buffers, ChunkLogits, finish, multiply_head
from kdscale.losses.classes import ClassTargets
from kdscale.losses.dense import dense_targets
from kdscale.losses.products import HALVES, add_product, multiply
from kdscale.types import Head, Targets, TeacherLogits

__all__ = ["LossSums", "Objective", "TargetsAt", "head_and_loss"]

# Of a chunk. Every chunk reads the whole weight, so that matrix products of fewer are slower; more
# gain nothing. On a CPU the two buffers take as much memory as the gradient of a weight 512 wide.
# A GPU multiplies so much faster than it reads that it takes 1,000 positions, and launches count.
_POSITIONS = 256
_POSITIONS_GPU = 2048
_ELEMENTS_GPU = 5 << 26

ChunkTargets = Targets | ClassTargets | TeacherLogits
"""What a position may be trained on."""

TargetsAt = Callable[[slice, Callable[[], torch.Tensor]], ChunkTargets]
"""The targets of some of the C positions, made when they are needed. They may depend on the
student's logits there, which the second argument returns, [C, V] float32; these are gone when the
call has returned."""


@dataclass(frozen=True)
class LossSums:
    """Scalar sums over all positions in nats; only `objective` is differentiable."""

    objective: torch.Tensor
    cross_entropy: torch.Tensor
    distillation: torch.Tensor  # T^2 times the divergence, or the soft cross-entropy; 0 without


def head_and_loss(
    hidden: torch.Tensor,
    head: Head,
    labels: torch.Tensor,
    targets: TargetsAt | None = None,
    objective: Objective | None = None,
    label_weights: torch.Tensor | None = None,
) -> LossSums:
    """Return sums over P positions of the objective on hidden states [P, D] and labels [P] int64.

    `targets` gives SparseTargets, DenseTargets or TeacherLogits over V ids, or ClassTargets, for a
    slice of the positions, see TargetsAt; without it there is cross-entropy alone. `label_weights`
    [P] float32 weigh the cross-entropy; where one is 0, the label may be any number. Gradients
    reach `hidden`, the head's weight and its bias. Products are in the dtype of `hidden` or, where
    autocast is on, in its dtype. Raises ValueError for shapes that do not fit each other, and for
    ClassTargets with another divergence or temperature or with label weights.
    """
    objective = objective or Objective()
    device = hidden.device.type
    if torch.is_autocast_enabled(device):
        # Not left to autocast, which skips products that write to memory that is there.
        hidden = hidden.to(torch.get_autocast_dtype(device))
    width = head.vocab_size if head.weight is None else head.weight.shape[-1]
    fits = hidden.shape[-1] == width or (head.weight is None and hidden.shape[-1] > width)
    if hidden.shape[:-1] != labels.shape or not fits:
        raise ValueError(
            f"hidden states {tuple(hidden.shape)}, labels {tuple(labels.shape)} and a head for "
            f"width {width} do not belong together"
        )
    sums = _FusedLoss.apply(
        hidden, head.weight, head.bias, head, labels, targets, objective, label_weights
    )
    return LossSums(*sums)


class _FusedLoss(torch.autograd.Function):
    """Fused loss: gradients are made in the forward, chunk by chunk, and scaled in the backward."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: torch.Tensor,
        weight: torch.Tensor | None,
        bias: torch.Tensor | None,
        head: Head,
        labels: torch.Tensor,
        targets: TargetsAt | None,
        objective: Objective,
        label_weights: torch.Tensor | None,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        gradients = _Gradients(ctx.needs_input_grad, hidden, weight, bias)
        used = head.cast(hidden.dtype)
        size = chunk_positions(hidden.device.type, head.vocab_size)
        buffers = Buffers(min(size, len(labels)), head.vocab_size, hidden)
        sums = torch.zeros(3, dtype=torch.float64, device=hidden.device)
        kernel: kernels.KernelLoss | None = None
        for start in range(0, len(labels), size):
            part = slice(start, min(start + size, len(labels)))
            some = hidden[part]
            logits = ChunkLogits(some, used, buffers)
            found = targets(part, logits) if targets is not None else None
            weights = None if label_weights is None else label_weights[part]
            rounded = buffers.rounded(len(some))
            if buffers.rounds and kernels.takes(found, rounded.device.type, objective):
                if kernel is None:
                    weight_of_targets = 0.0 if found is None else objective.kd_weight
                    kernel = kernels.KernelLoss(
                        head, labels, weight_of_targets, objective, label_weights
                    )
                multiply_head(some, used, rounded)
                kernel.add(part, rounded, found)
            else:
                if isinstance(found, TeacherLogits):
                    found = dense_targets(found, logits)
                gradient = buffers.gradient(len(some))
                value, factor = chunk_loss(
                    logits(),
                    labels[part],
                    found,
                    objective,
                    gradient,
                    weights,
                    defers=buffers.rounds,
                )
                sums += value
                if gradients.wanted:
                    finish(gradient, factor, logits.slope, rounded)
            if gradients.wanted:
                gradients.add(part, some, used, rounded)
        if kernel is not None:
            sums += kernel.sums()
        # Not by `save_for_backward`: what that holds on to, autograd copies instead of making it
        # the gradient of a leaf.
        ctx.gradients = gradients.all
        ctx.dtypes = [None if each is None else each.dtype for each in (hidden, weight, bias)]
        objective_sum, cross_entropy, distillation = sums.float().unbind()
        ctx.mark_non_differentiable(cross_entropy, distillation)
        return objective_sum, cross_entropy, distillation

    @staticmethod
    def backward(ctx: Any, *scales: torch.Tensor) -> Any:
        gradients, ctx.gradients = ctx.gradients, None
        if gradients is None:
            raise RuntimeError("the gradients of this loss were handed out already")
        scaled = [
            None if gradient is None or dtype is None else _scale(gradient, scales[0], dtype)
            for gradient, dtype in zip(gradients, ctx.dtypes, strict=True)
        ]
        return (*scaled, None, None, None, None, None)


def chunk_positions(device: str, vocab_size: int) -> int:
    """Return the positions of a chunk on a `device` of that type."""
    if device == "cpu":
        return _POSITIONS
    fitting = _ELEMENTS_GPU // vocab_size // _POSITIONS * _POSITIONS
    return min(_POSITIONS_GPU, max(_POSITIONS, fitting))


def _scale(gradient: torch.Tensor, scale: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Return `gradient` times the scalar `scale` in `dtype`, in place where it has that."""
    # A scalar of float32 is rounded to no other dtype by this.
    if gradient.dtype == dtype:
        return gradient.mul_(scale)
    return torch.mul(gradient, scale, out=torch.empty_like(gradient, dtype=dtype))


class _Gradients:
    """Gradients of hidden states, weight and bias so far; None where one is not needed."""

    def __init__(
        self,
        needed: tuple[bool, ...],
        hidden: torch.Tensor,
        weight: torch.Tensor | None,
        bias: torch.Tensor | None,
    ) -> None:
        self.wanted = any(needed[:3])
        # Logits of padding ids, where a model makes its own, get no gradient.
        self.hidden = torch.zeros_like(hidden) if needed[0] else None
        self.weight = _sums(weight, len(hidden)) if weight is not None and needed[1] else None
        self._is_first = True
        self.bias = _sums(bias, positions=0) if bias is not None and needed[2] else None

    @property
    def all(self) -> tuple[torch.Tensor | None, ...]:
        return self.hidden, self.weight, self.bias

    def add(self, part: slice, hidden: torch.Tensor, head: Head, gradient: torch.Tensor) -> None:
        """Add those of a chunk, from the `gradient` [C, V] in its products; `head` is cast."""
        gradient = gradient.to(hidden.dtype)
        vocab_size = gradient.shape[-1]
        if self.hidden is not None and head.weight is None:
            self.hidden[part, :vocab_size] = gradient
        elif self.hidden is not None and head.weight is not None:
            torch.mm(gradient, head.weight, out=self.hidden[part])
        if self.weight is not None:
            # The first one is written, not added.
            to = multiply if self._is_first else add_product
            to(gradient.T, hidden, self.weight[:vocab_size])
            if self._is_first:
                self.weight[vocab_size:] = 0
        if self.bias is not None:
            self.bias[:vocab_size] += gradient.sum(dim=0, dtype=self.bias.dtype)
        self._is_first = False


def _sums(parameter: torch.Tensor, positions: int) -> torch.Tensor:
    """Return memory to add up a gradient in; zeros where there are no `positions` to begin it.

    In float32: of chunk after chunk, halves would lose what is small.
    """
    dtype = torch.float32 if parameter.dtype in HALVES else parameter.dtype
    make = torch.empty_like if positions else torch.zeros_like
    return make(parameter, dtype=dtype)
