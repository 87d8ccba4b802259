"""The loss of a chunk as one operator of torch, where there are a GPU, Triton and its compiler."""

from collections.abc import Callable
from functools import cache, partial
from typing import Any, TypeGuard

import torch

from kdscale.losses import divergences
from kdscale.losses.chunk import Objective
from kdscale.losses.divergences import Divergence
from kdscale.types import Head, SparseTargets, TeacherLogits
from kdscale.utils.triton_runs import triton_runs

MOST_IDS = 127
"""Ids of a position that the kernel takes: it compares each with each."""


# Divergences that the kernel computes, and the option that each has.
_OPTIONS: dict[Callable[..., torch.Tensor], str | None] = {
    divergences.reverse_kl_sum: None,
    divergences.jensen_shannon_sum: "beta",
    divergences.skewed_kl_sum: "alpha",
    divergences.skewed_reverse_kl_sum: "alpha",
    divergences.total_variation_sum: None,
}


def takes(
    targets: object, device: str, objective: Objective
) -> TypeGuard[SparseTargets | TeacherLogits | None]:
    """Return whether KernelLoss computes the loss on these targets on such a device."""
    if not available(device):
        return False
    if objective.divergence is not None:
        is_plain = isinstance(targets, TeacherLogits) and targets.share is None
        return is_plain and _kind(objective.divergence) is not None
    if isinstance(targets, TeacherLogits):
        return True
    sparse = isinstance(targets, SparseTargets) and targets.ids.shape[-1] <= MOST_IDS
    return (targets is None or sparse) and objective.temperature == 1.0


def _kind(divergence: Divergence) -> tuple[str, float] | None:
    """Return the kernel's name of a divergence, and its option; None where it has none."""
    function: Callable[..., torch.Tensor] = divergence
    options: dict[str, float] = {}
    if isinstance(divergence, partial):
        function, options = divergence.func, divergence.keywords
    if function not in _OPTIONS:
        return None
    option = _OPTIONS[function]
    share = 0.5 if option is None else options[option]
    # At 0 and 1 there is no mixture, whose least part the kernel bounds.
    return (function.__name__.removesuffix("_sum"), share) if 0 < share < 1 else None


class KernelLoss:
    """Loss of P positions, some of them at a time; what is small is done once for all."""

    def __init__(
        self,
        head: Head,
        labels: torch.Tensor,
        weight: float,
        objective: Objective | None = None,
        label_weights: torch.Tensor | None = None,
    ) -> None:
        """Take `labels` [P] int64 and their weights [P] float32 in the cross-entropy.

        `weight` is that of the distillation, 0 without targets; `objective` has the student's
        temperature in it, and the divergence.
        """
        self._head, self._weight, self._label_weights = head, weight, label_weights
        objective = objective or Objective()
        self._temperature = objective.temperature
        self._divergence = objective.divergence
        self._hard = torch.full_like(labels, 1 - weight, dtype=torch.float32)
        if label_weights is not None:
            self._hard *= label_weights
            labels = labels.where(label_weights != 0, 0)
        self._labels = labels
        # Where nothing is added, nothing is lost.
        self._values = self._hard.new_zeros(len(labels), 3)

    def add(
        self,
        part: slice,
        products: torch.Tensor,
        targets: SparseTargets | TeacherLogits | None,
    ) -> None:
        """Add some positions, whose head's `products` [C, V] become their gradient.

        They are neither scaled nor capped yet, and of any float type.
        """
        labels, hard, values = self._labels[part], self._hard[part], self._values[part]
        scale, softcap = float(self._head.scale), self._head.softcap
        if isinstance(targets, TeacherLogits):
            shared = products, values, labels, hard, targets.logits, self._weight
            temperatures = self._temperature, targets.temperature
            if self._divergence is None:
                _dense_chunk(*shared, *temperatures, targets.share, scale, softcap)
            else:
                kind = _kind(self._divergence)
                assert kind is not None
                _divergence_chunk(*shared, *temperatures, targets.share, scale, softcap, *kind)
            targets.add(values[:, 2].sum())
            return
        if targets is None:
            targets = SparseTargets(labels[:, None][:, :0], hard[:, None][:, :0])
        _sparse_chunk(
            products,
            values,
            labels,
            hard,
            targets.ids,
            targets.probs,
            targets.ghost,
            self._weight,
            scale,
            softcap,
        )

    def sums(self) -> torch.Tensor:
        """Return [3] float64: sums of objective, cross-entropy and distillation, in nats."""
        surprise, distillation, _ = self._values.double().unbind(-1)
        if self._label_weights is not None:
            surprise = surprise * self._label_weights
        cross_entropy, soft = surprise.sum(), self._temperature**2 * distillation.sum()
        total = self._weight * soft + (1 - self._weight) * cross_entropy
        return torch.stack([total, cross_entropy, soft])


@cache
def available(device: str) -> bool:
    """Return whether the kernels run on a `device` of that type; a warning says why they do not."""

    def trial() -> None:
        logits = torch.zeros(1, 8, dtype=torch.bfloat16, device=device)
        labels = torch.zeros(1, dtype=torch.int64, device=device)
        teacher = TeacherLogits(logits.clone(), 1.0, lambda _: None)
        for targets in (None, teacher):
            KernelLoss(Head(None, None, 8), labels, 0.5).add(slice(0, 1), logits, targets)

    return triton_runs(device, "The loss is computed", trial)


# Operators, so that tracers and fake tensors know what the kernels write to. Those import Triton.
_SPARSE = """(
    Tensor(a!) logits, Tensor(b!) values, Tensor labels, Tensor hard, Tensor ids, Tensor probs,
    Tensor? ghost, float weight, float scale, float? softcap
) -> ()"""
_DENSE = """(
    Tensor(a!) logits, Tensor(b!) values, Tensor labels, Tensor hard, Tensor teacher, float weight,
    float temperature, float teacher_temperature, float? teacher_share, float scale, float? softcap
) -> ()"""
_DIVERGENCE = _DENSE.replace("softcap", "softcap, str kind, float share")
_WRITTEN = ("logits", "values")


@torch.library.custom_op("kdscale::sparse_chunk", mutates_args=_WRITTEN, schema=_SPARSE)
def _sparse_chunk(*arguments: Any) -> None:
    from kdscale.losses.triton_chunk import sparse_chunk

    sparse_chunk(*arguments)


@torch.library.custom_op("kdscale::dense_chunk", mutates_args=_WRITTEN, schema=_DENSE)
def _dense_chunk(*arguments: Any) -> None:
    from kdscale.losses.triton_dense import dense_chunk

    dense_chunk(*arguments)


@torch.library.custom_op("kdscale::divergence_chunk", mutates_args=_WRITTEN, schema=_DIVERGENCE)
def _divergence_chunk(*arguments: Any) -> None:
    from kdscale.losses.triton_dense import dense_chunk

    dense_chunk(*arguments)


for _operator in (_sparse_chunk, _dense_chunk, _divergence_chunk):
    # Nothing is returned.
    _operator.register_fake(lambda *_: None)
