"""A chunk of positions in the fused loss: memory, logits, and the gradient for the products."""

from functools import cached_property

import torch

from kdscale.losses.products import HALVES, multiply
from kdscale.types import Head

# Rows that a GPU's products read start at multiples of 128 bytes, as its fast copies need 16.
_ALIGNED = 64


class Buffers:
    """Memory that all chunks share: logits and their gradient, and the gradient for products."""

    def __init__(self, positions: int, vocab_size: int, hidden: torch.Tensor) -> None:
        self._shape, self._like = (positions, vocab_size), hidden
        self.rounds = hidden.dtype in HALVES
        """True if products take the gradient in less than float32."""

    def logits(self, positions: int) -> torch.Tensor:
        """Return memory for logits, [C, V] float32."""
        return self._logits[:positions]

    def gradient(self, positions: int) -> torch.Tensor:
        """Return memory for their gradient, [C, V] float32."""
        return self._gradient[:positions]

    def rounded(self, positions: int) -> torch.Tensor:
        """Return memory for the gradient in products, [C, V]: that of `gradient` if in float32."""
        return self._rounded[:positions] if self.rounds else self.gradient(positions)

    @cached_property
    def _logits(self) -> torch.Tensor:
        return self._like.new_empty(self._shape, dtype=torch.float32)

    @cached_property
    def _gradient(self) -> torch.Tensor:
        return self._like.new_empty(self._shape, dtype=torch.float32)

    @cached_property
    def _rounded(self) -> torch.Tensor:
        positions, vocab_size = self._shape
        aligned = vocab_size + -vocab_size % _ALIGNED
        return self._like.new_empty(positions, aligned)[:, :vocab_size]


class ChunkLogits:
    """A chunk's logits, [C, V] float32, made when they are first asked for."""

    def __init__(self, hidden: torch.Tensor, head: Head, buffers: Buffers) -> None:
        self._hidden, self._head, self._buffers = hidden, head, buffers
        self._made: torch.Tensor | None = None
        self.slope: torch.Tensor | float | None = None
        """The derivative of the logits in the head's products; None for 1."""

    def __call__(self) -> torch.Tensor:
        """Return them; the memory is that of all chunks."""
        if self._made is None:
            self._made = self._buffers.logits(len(self._hidden))
            multiply_head(self._hidden, self._head, self._made)
            self.slope = _transform(self._made, self._head)
        return self._made


def finish(
    gradient: torch.Tensor,
    factor: torch.Tensor | None,
    slope: torch.Tensor | float | None,
    rounded: torch.Tensor,
) -> None:
    """Write `gradient` times `factor` and `slope` to `rounded`, which may be `gradient` itself.

    Nothing of their size is read or written twice for it.
    """
    last = slope if slope is not None else factor
    if factor is not None and slope is not None:
        gradient.mul_(factor)
    if last is not None:
        torch.mul(gradient, last, out=rounded)
    elif rounded is not gradient:
        rounded.copy_(gradient)


def multiply_head(hidden: torch.Tensor, head: Head, out: torch.Tensor) -> None:
    """Write the head's products to `out` [C, V], float32 or in their dtype."""
    if head.weight is None:
        out.copy_(head.products(hidden))
    elif head.bias is None:
        multiply(hidden, head.weight.T, out)
    elif hidden.dtype == out.dtype:
        torch.addmm(head.bias, hidden, head.weight.T, out=out)
    else:
        multiply(hidden, head.weight.T, out)
        out.add_(head.bias)


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
