"""Loss of a chunk of logits and its gradient in them, at the price of one softmax.

    L = w T^2 H(t, q_T) + (1 - w) H(y, q),    dL/dz = w T (s q_T - t) + (1 - w) (q - y)

for targets t that sum to s, labels y, q = softmax(z) and q_T = softmax(z / T); T^2 keeps the size
of gradients (Hinton, Vinyals, Dean, 2015). At T = 1 both are one softmax, and the sparse target
touches K entries of it: nothing of size V is computed for the distillation that cross-entropy would
not need, but a product. A ghost bucket of mass g, where r is the student's mass at all ids that are
not listed, adds g (q - q / r) at these and g q at those that are. r is added up: as 1 - sum q it
would be wrong by what torch's softmax is off, which is more than a small tail. Other divergences
(`divergences.py`) are differentiated by autograd.
"""

from dataclasses import dataclass

import torch

from kdscale.losses.classes import ClassTargets, add_classes
from kdscale.losses.divergences import Divergence, merged_log_probs
from kdscale.losses.rounding import SMALLEST_PROBABILITY, log_of
from kdscale.types import SparseTargets, Targets

# What the sum of a few float32 probabilities may be off by.
_ROUNDING = 1e-6


@dataclass(frozen=True)
class Objective:
    """Objective of a position: w * distillation + (1 - w) * cross-entropy."""

    kd_weight: float = 0.0
    temperature: float = 1.0
    divergence: Divergence | None = None
    """None: the soft cross-entropy, whose gradient is that of the forward KL."""

    @property
    def is_plain(self) -> bool:
        """True if labels and sparse targets meet the same softmax."""
        return self.divergence is None and self.temperature == 1.0


def chunk_loss(
    logits: torch.Tensor,
    labels: torch.Tensor,
    targets: Targets | ClassTargets | None,
    objective: Objective,
    gradient: torch.Tensor,
    label_weights: torch.Tensor | None = None,
    *,
    defers: bool = False,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Return the loss of C positions of `logits` [C, V] float32; `gradient` becomes its gradient.

    Returns [3] float64, sums of objective, cross-entropy and distillation, in nats; and None or,
    with `defers`, a factor [C, 1] that `gradient` is still to be multiplied with, in a pass that
    the caller makes anyway. `gradient` [C, V] is memory apart from the logits. `labels` is [C]
    int64. Without `targets` the distillation is 0; with ClassTargets it is cross-entropy where a
    position has none. `label_weights` [C] float32 weigh the cross-entropy; where one is 0, the
    label may be any number. Raises ValueError for ClassTargets with another divergence or
    temperature, or with such weights.
    """
    weight = objective.kd_weight if targets is not None else 0.0
    hard: torch.Tensor | float = 1 - weight  # what the labels' gradient is multiplied by
    if label_weights is not None:
        hard = hard * label_weights[:, None]
        labels = labels.where(label_weights != 0, 0)
    distillation = torch.zeros((), device=logits.device)
    factor = None
    # Sparse targets that share the labels' softmax; all others need a second one.
    sparse = targets if isinstance(targets, SparseTargets) and objective.is_plain else None
    # One pass, where a maximum, a difference, an exponential and a sum would be four.
    q = torch.softmax(logits, dim=-1, out=gradient)
    surprise = -log_of(q.gather(-1, labels[:, None]))
    if label_weights is not None:
        surprise *= label_weights[:, None]
    cross_entropy = surprise.sum()
    if isinstance(targets, ClassTargets):
        if not objective.is_plain or label_weights is not None:
            raise ValueError("targets over classes are for the forward KL at temperature 1 alone")
        distillation = add_classes(logits, q, labels, targets, weight)
        hard = 1.0
    elif sparse is not None and sparse.ghost is None and defers:
        distillation, factor = _add_deferred(q, sparse, weight, hard)
        hard = hard / factor.clamp_min(SMALLEST_PROBABILITY)
    elif sparse is not None:
        distillation = _add_sparse(q, sparse, weight, hard)
    else:
        if weight or label_weights is not None:
            q.mul_(hard)
        if targets is not None:
            distillation, apart = _apart(logits, targets, objective)
            q.add_(apart, alpha=weight)
    q.scatter_add_(-1, labels[:, None], -hard * q.new_ones(len(q), 1))
    total = weight * distillation + (1 - weight) * cross_entropy
    return torch.stack([total, cross_entropy, distillation]).double(), factor


def _add_sparse(
    q: torch.Tensor, targets: SparseTargets, weight: float, hard: torch.Tensor | float
) -> torch.Tensor:
    """Return the soft cross-entropy (scalar) and add its gradient to `q`.

    The softmax `q` [C, V] becomes `weight` times that gradient and `hard` ([C, 1] or a number)
    times `q`.
    """
    ids, probs = targets.ids, targets.probs
    listed = q.gather(-1, ids)
    value = -(probs * log_of(listed)).sum()
    if targets.ghost is None:
        mass = probs.sum(dim=-1, keepdim=True)
        # Targets that sum to 1, which most do, leave it as it is: a pass over the chunk less. To
        # look costs a GPU more than the pass.
        is_odd = q.device.type != "cpu" or (mass - 1).abs().max() > _ROUNDING
        if is_odd or isinstance(hard, torch.Tensor):
            q.mul_(hard + weight * mass)
    else:
        value += _add_ghost(q, targets, listed, weight, hard)
    q.scatter_add_(-1, ids, -weight * probs)
    return value


def _add_deferred(
    q: torch.Tensor, targets: SparseTargets, weight: float, hard: torch.Tensor | float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the soft cross-entropy (scalar), and a factor [C, 1].

    `q` becomes `weight` times the gradient and `hard` times `q`, divided by the factor.
    """
    value = -(targets.probs * log_of(q.gather(-1, targets.ids))).sum()
    factor = hard + weight * targets.probs.sum(dim=-1, keepdim=True)
    # Where it is 0, so is all that is divided by it.
    share = -weight / factor.clamp_min(SMALLEST_PROBABILITY)
    q.scatter_add_(-1, targets.ids, share * targets.probs)
    return value, factor


def _add_ghost(
    q: torch.Tensor,
    targets: SparseTargets,
    listed: torch.Tensor,
    weight: float,
    hard: torch.Tensor | float,
) -> torch.Tensor:
    """Return what a ghost bucket adds to the soft cross-entropy (scalar).

    `listed` [C, K] are the values of `q` at the listed ids. `q` becomes the gradient but for the
    target probabilities of these ids.
    """
    assert targets.ghost is not None
    ghost = targets.ghost[..., None]
    mass = targets.probs.sum(dim=-1, keepdim=True) + ghost
    q.scatter_(-1, targets.ids, 0.0)
    rest = q.sum(dim=-1, keepdim=True)
    whole = rest + listed.sum(dim=-1, keepdim=True)
    odds = torch.where(rest > 0, ghost / rest.clamp_min(SMALLEST_PROBABILITY), 0.0)
    # Listed ids apart: there the odds, which have no bound, would only cancel.
    pull = hard + weight * mass / whole
    q.mul_(pull - weight * odds).scatter_(-1, targets.ids, pull * listed)
    return (mass * whole.log() - ghost * log_of(rest)).sum()


def _apart(
    logits: torch.Tensor, targets: Targets, objective: Objective
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return T^2 times the distillation loss (scalar) and its gradient [C, V] in the logits.

    It needs a softmax apart from that of the labels.
    """
    temperature = objective.temperature
    scaled = logits / temperature
    if isinstance(targets, SparseTargets) and objective.divergence is not None:
        value, gradient = _merged(scaled, targets, objective.divergence)
    elif isinstance(targets, SparseTargets):
        gradient = torch.softmax(scaled, dim=-1)
        value = _add_sparse(gradient, targets, weight=1.0, hard=0.0)
    elif objective.divergence is not None:
        value, gradient = _differentiated(scaled, targets.log_probs, objective.divergence)
    else:
        probs = targets.log_probs.exp()
        gradient = torch.log_softmax(scaled, dim=-1)
        value = -(probs * gradient).sum()
        gradient.exp_().mul_(probs.sum(dim=-1, keepdim=True)).sub_(probs)
    return temperature**2 * value, gradient.mul_(temperature)


def _differentiated(
    logits: torch.Tensor, log_p: torch.Tensor, divergence: Divergence
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return a divergence between p and softmax(logits) [C, N], and its gradient, by autograd."""
    with torch.enable_grad():
        logits.requires_grad_()
        value = divergence(log_p, torch.log_softmax(logits, dim=-1))
    (gradient,) = torch.autograd.grad(value, logits)
    return value.detach(), gradient


def _merged(
    scaled: torch.Tensor, targets: SparseTargets, divergence: Divergence
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return a divergence on the listed ids and the ghost bucket, and its gradient [C, V].

    `targets` must have the bucket. Its logit is the logsumexp of its ids, each of which has the
    share of the bucket's gradient that it has of the bucket.
    """
    q = torch.softmax(scaled, dim=-1)
    log_norm = scaled.amax(dim=-1, keepdim=True) - q.amax(dim=-1, keepdim=True).log()
    q.scatter_(-1, targets.ids, 0.0)
    rest = q.sum(dim=-1, keepdim=True).clamp_min(SMALLEST_PROBABILITY)
    logits = torch.cat([scaled.gather(-1, targets.ids) - log_norm, rest.log()], dim=-1)
    value, gradient = _differentiated(logits, merged_log_probs(targets), divergence)
    # Divided first: a small `rest` alone would overflow.
    q.div_(rest).mul_(gradient[:, -1:]).scatter_(-1, targets.ids, gradient[:, :-1])
    return value, q
