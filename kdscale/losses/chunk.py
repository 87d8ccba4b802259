"""The loss of a chunk of logits and its gradient in them, at the price of one softmax.

    L = w T^2 H(t, q_T) + (1 - w) H(y, q),    dL/dz = w T (s q_T - t) + (1 - w) (q - y)

for targets t that sum to s, labels y, q = softmax(z) and q_T = softmax(z / T); T^2 keeps the size
of gradients (Hinton, Vinyals, Dean, 2015). At T = 1 both are one softmax, and the sparse target
touches K entries of it: nothing of size V is computed for the distillation that cross-entropy would
not need, but a product. A ghost bucket of mass g, where r = 1 - sum q is the student's, adds
g (q - q / r) at ids that are not listed and g q at those that are. Other divergences
(`divergences.py`) are differentiated by autograd.
"""

from dataclasses import dataclass

import torch

from kdscale.losses.divergences import SMALLEST_MASS, Divergence, classes
from kdscale.types import DenseTargets, SparseTargets, Targets

# Below it float32 has no q: a target that unlikely counts as 87 nats. Its gradient is exact.
_SMALLEST_PROBABILITY = torch.finfo(torch.float32).tiny

# What the sum of a few float32 probabilities may be off by.
_ROUNDING = 1e-6


@dataclass(frozen=True)
class Objective:
    """What is summed at a position: w * distillation + (1 - w) * cross-entropy."""

    kd_weight: float = 0.0
    temperature: float = 1.0
    divergence: Divergence | None = None
    """None: the soft cross-entropy, whose gradient is that of the forward KL."""

    @property
    def is_plain(self) -> bool:
        """Whether labels and sparse targets meet the same softmax."""
        return self.divergence is None and self.temperature == 1.0


def chunk_loss(
    logits: torch.Tensor,
    labels: torch.Tensor,
    targets: Targets | None,
    objective: Objective,
    gradient: torch.Tensor,
    label_weights: torch.Tensor | None = None,
) -> torch.Tensor:
    """[3] float64: sums of objective, cross-entropy and distillation over C positions of logits
    [C, V] float32. `gradient` [C, V], memory apart from the logits, becomes the objective's
    gradient in them.

    labels: [C] int64. Without targets the distillation is 0. `label_weights` [C] float32 weigh the
    cross-entropy; where one is 0, the label may be any number.
    """
    weight = objective.kd_weight if targets is not None else 0.0
    hard: torch.Tensor | float = 1 - weight  # what the labels' gradient is multiplied by
    if label_weights is not None:
        hard = hard * label_weights[:, None]
        labels = labels.where(label_weights != 0, 0)
    distillation = torch.zeros((), device=logits.device)
    # Sparse targets that meet the labels' own softmax; all others need a softmax of their own.
    sparse = targets if isinstance(targets, SparseTargets) and objective.is_plain else None
    # One pass, where a maximum, a difference, an exponential and a sum would be four.
    q = torch.softmax(logits, dim=-1, out=gradient)
    surprise = -_log(q.gather(-1, labels[:, None]))
    if label_weights is not None:
        surprise *= label_weights[:, None]
    cross_entropy = surprise.sum()
    if sparse is not None:
        distillation, mass, at_ids = _sparse_terms(q.gather(-1, sparse.ids), sparse)
        # Targets that sum to 1, which most do, leave it as it is: a pass over the chunk less. To
        # look costs a GPU more than the pass.
        is_odd = q.device.type != "cpu" or (mass - 1).abs().max() > _ROUNDING
        if is_odd or label_weights is not None:
            q.mul_(hard + weight * mass)
        q.scatter_add_(-1, sparse.ids, weight * at_ids)
    else:
        if weight or label_weights is not None:
            q.mul_(hard)
        if targets is not None:
            distillation, apart = _apart(logits, targets, objective)
            q.add_(apart, alpha=weight)
    q.scatter_add_(-1, labels[:, None], -hard * q.new_ones(len(q), 1))
    total = weight * distillation + (1 - weight) * cross_entropy
    return torch.stack([total, cross_entropy, distillation]).double()


def _log(q: torch.Tensor) -> torch.Tensor:
    return q.clamp_min(_SMALLEST_PROBABILITY).log()


def _sparse_terms(
    q: torch.Tensor, targets: SparseTargets
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The soft cross-entropy (scalar) and its gradient as a share of the softmax [C, 1] at all ids
    and more at the listed ones [C, K], whose softmax is `q` [C, K]."""
    probs = targets.probs
    mass = probs.sum(dim=-1, keepdim=True)
    value = -(probs * _log(q)).sum()
    if targets.ghost is None:
        return value, mass, -probs
    ghost = targets.ghost[..., None]
    rest = 1 - q.sum(dim=-1, keepdim=True)
    clamped = rest.clamp_min(SMALLEST_MASS)
    value -= (ghost * clamped.log()).sum()
    # A clamped logarithm has no slope.
    ghost = torch.where(rest > SMALLEST_MASS, ghost, 0.0)
    odds = ghost / clamped
    return value, mass + ghost - odds, odds * q - probs


def _apart(
    logits: torch.Tensor, targets: Targets, objective: Objective
) -> tuple[torch.Tensor, torch.Tensor]:
    """T^2 times the distillation loss (scalar) and its gradient [C, V] in the logits, by a softmax
    of its own."""
    temperature = objective.temperature
    scaled = logits / temperature
    if objective.divergence is not None:
        value, gradient = _differentiated(scaled, targets, objective.divergence)
    elif isinstance(targets, DenseTargets):
        probs = targets.log_probs.exp()
        gradient = torch.log_softmax(scaled, dim=-1)
        value = -(probs * gradient).sum()
        gradient.exp_().mul_(probs.sum(dim=-1, keepdim=True)).sub_(probs)
    else:
        gradient = torch.softmax(scaled, dim=-1)
        value, mass, at_ids = _sparse_terms(gradient.gather(-1, targets.ids), targets)
        gradient.mul_(mass).scatter_add_(-1, targets.ids, at_ids)
    return temperature**2 * value, gradient.mul_(temperature)


def _differentiated(
    scaled: torch.Tensor, targets: Targets, divergence: Divergence
) -> tuple[torch.Tensor, torch.Tensor]:
    """A divergence of a chunk and its gradient, by autograd."""
    with torch.enable_grad():
        scaled.requires_grad_()
        value = divergence(*classes(scaled, targets))
    (gradient,) = torch.autograd.grad(value, scaled)
    return value.detach(), gradient
