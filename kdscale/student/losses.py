"""Losses over target positions: pure functions that return sums.

Write p for the teacher, t for the cached target, q for the student's softmax, all at one position.
The forward KL(p || q) and the soft cross-entropy -sum_v p_v log q_v differ by the entropy of p,
which does not depend on the student: their gradients with respect to the logits are both q - p.
They are linear in p, so a target with E[t] = p (codecs `varopt`, `sample`) gives an unbiased
gradient. This is why the soft cross-entropy is what we sum; subtracting the teacher's mean entropy,
which the cache keeps for each row, gives an unbiased estimate of the KL to log. Reverse KL, JSD and
total variation are not linear in t: on sampled targets they would be biased.

Nothing here divides: the training loop divides once, by the targets of all ranks and micro-batches.
Temperature is the cache's: targets made at temperature T are compared with logits / T, and the sum
is multiplied by T^2, so that gradients keep their size (Hinton, Vinyals, Dean, 2015).
"""

import torch

from kdscale.types import DenseTargets, SparseTargets, Targets

# The ghost bucket's share of the student is 1 - sum q: float32 may make it 0 or less.
_SMALLEST_MASS = 1e-8


def soft_cross_entropy_sum(
    logits: torch.Tensor, targets: Targets, temperature: float = 1.0
) -> torch.Tensor:
    """Sum over P positions of T^2 * -sum_v t_v log softmax(logits / T)_v; a scalar, float32.

    `logits` is [P, V]; sparse targets have ids and probs [P, K] and a ghost [P] or none, dense ones
    log_probs [P, V]. A ghost bucket is one more class: all ids that are not listed. `full` and
    `varopt` are unbiased (up to rounding), `topk` is exact on the K + 1 classes and biased on V.
    """
    scaled = logits.float() / temperature
    if isinstance(targets, DenseTargets):
        _check_shape(scaled, targets.log_probs.shape)
        log_q = torch.log_softmax(scaled, dim=-1)
        probs = targets.log_probs.exp()
        # 0 * -inf at padding ids is 0, not NaN.
        total = -torch.where(probs > 0, probs * log_q, 0.0).sum()
    else:
        total = _sparse_cross_entropy_sum(scaled, targets)
    return total * temperature**2


def _sparse_cross_entropy_sum(logits: torch.Tensor, targets: SparseTargets) -> torch.Tensor:
    _check_shape(logits, (*targets.ids.shape[:-1], logits.shape[-1]))
    log_norm = torch.logsumexp(logits, dim=-1, keepdim=True)
    log_q = logits.gather(-1, targets.ids) - log_norm
    total = -(targets.probs * log_q).sum()
    if targets.ghost is not None:
        rest = (1 - log_q.exp().sum(dim=-1)).clamp_min(_SMALLEST_MASS)
        total = total - (targets.ghost * rest.log()).sum()
    return total


def target_entropy_sum(targets: Targets) -> torch.Tensor:
    """Sum over positions of the entropy of targets without sampling noise (`full`, `topk`),
    nats."""
    if isinstance(targets, DenseTargets):
        probs = targets.log_probs.exp()
        return -torch.where(probs > 0, probs * targets.log_probs, 0.0).sum()
    total = torch.special.entr(targets.probs).sum()
    return total if targets.ghost is None else total + torch.special.entr(targets.ghost).sum()


def cross_entropy_sum(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Sum over P positions of -log softmax(logits)[label]; logits [P, V], labels [P] int64."""
    _check_shape(logits, (*labels.shape, logits.shape[-1]))
    return torch.nn.functional.cross_entropy(logits.float(), labels, reduction="sum")


def _check_shape(logits: torch.Tensor, expected: tuple[int, ...] | torch.Size) -> None:
    if tuple(logits.shape) != tuple(expected):
        raise ValueError(
            f"logits have shape {tuple(logits.shape)}, targets ask for {tuple(expected)}"
        )
