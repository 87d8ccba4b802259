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

from kdscale.losses.chunk import Objective, chunk_loss
from kdscale.losses.classes import ClassTargets
from kdscale.types import Head, Targets

__all__ = ["LossSums", "Objective", "TargetsAt", "head_and_loss"]

# Of a chunk. Every chunk reads the whole weight, so that matrix products of fewer are slower; more
# gain nothing. The two buffers take as much memory as the gradient of a weight 512 wide.
_POSITIONS = 256

TargetsAt = Callable[[slice, torch.Tensor], Targets | ClassTargets]
"""The targets of some of the C positions, made when they are needed; they may depend on the
student's logits there, [C, V] float32, which are gone when the call has returned."""


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

    `targets` gives SparseTargets or DenseTargets over V ids, or ClassTargets, for a slice of the
    positions and the logits there; without it there is cross-entropy alone. `label_weights` [P]
    float32 weigh the cross-entropy; where one is 0, the label may be any number. Gradients reach
    `hidden`, the head's weight and its bias. Products are in the dtype of `hidden` or, where
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
        shape = (min(_POSITIONS, len(labels)), head.vocab_size)
        buffers = [hidden.new_empty(shape, dtype=torch.float32) for _ in range(2)]
        sums = torch.zeros(3, dtype=torch.float64, device=hidden.device)
        for start in range(0, len(labels), _POSITIONS):
            part = slice(start, min(start + _POSITIONS, len(labels)))
            some = hidden[part]
            logits, gradient = (buffer[: len(some)] for buffer in buffers)
            _multiply(some, used, logits)
            slope = _transform(logits, head)
            found = targets(part, logits) if targets is not None else None
            weights = None if label_weights is None else label_weights[part]
            sums += chunk_loss(logits, labels[part], found, objective, gradient, weights)
            if gradients.wanted:
                gradients.add(part, some, used, gradient if slope is None else gradient.mul_(slope))
        # Not by `save_for_backward`: what that holds on to, autograd copies instead of making it
        # the gradient of a leaf.
        ctx.gradients = gradients.all
        objective_sum, cross_entropy, distillation = sums.float().unbind()
        ctx.mark_non_differentiable(cross_entropy, distillation)
        return objective_sum, cross_entropy, distillation

    @staticmethod
    def backward(ctx: Any, *scales: torch.Tensor) -> Any:
        gradients, ctx.gradients = ctx.gradients, None
        if gradients is None:
            raise RuntimeError("the gradients of this loss were handed out already")
        for gradient in gradients:
            if gradient is not None:
                gradient.mul_(scales[0].to(gradient.dtype))
        return (*gradients, None, None, None, None, None)


class _Gradients:
    """Gradient buffers of hidden states, weight and bias; None where a gradient is not needed."""

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
        self.weight = torch.zeros_like(weight) if weight is not None and needed[1] else None
        self.bias = torch.zeros_like(bias) if bias is not None and needed[2] else None

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
            rows = self.weight[:vocab_size]
            if rows.dtype == hidden.dtype:
                rows.addmm_(gradient.T, hidden)
            else:
                rows.add_(gradient.T @ hidden)
        if self.bias is not None:
            self.bias[:vocab_size] += gradient.sum(dim=0)


def _multiply(hidden: torch.Tensor, head: Head, out: torch.Tensor) -> None:
    """Write the head's products to `out` [C, V] float32.

    In place where dtypes allow: fresh memory would have to be mapped first, chunk by chunk.
    """
    if head.weight is None or hidden.dtype != out.dtype:
        out.copy_(head.products(hidden))
    elif head.bias is None:
        torch.mm(hidden, head.weight.T, out=out)
    else:
        torch.addmm(head.bias, hidden, head.weight.T, out=out)


def _transform(logits: torch.Tensor, head: Head) -> torch.Tensor | float | None:
    """Scale and cap `logits` in place; return the slope of that, None where there is neither."""
    if head.scale != 1.0:
        logits.mul_(head.scale)
    if head.softcap is None:
        return None if head.scale == 1.0 else head.scale
    logits.div_(head.softcap).tanh_()
    slope = (1 - logits**2).mul_(head.scale)
    logits.mul_(head.softcap)
    return slope
