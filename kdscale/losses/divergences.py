"""Divergences between a teacher p and a student q over C classes: pure functions that return sums.

Every function takes log p and log q, [..., C] float32, normalised over the last dimension, and
returns a scalar, the sum over all positions in nats; autograd differentiates it in log q. A class
that neither has (-inf: the padding of an embedding) counts as nothing. Where KL(a || b) would be
infinite, as b has nothing of a class of a's, b counts as 1.2e-38 there, 87 nats: a student has to
pay for what it puts where its teacher puts nothing. The classes are the vocabulary or, for targets
with a ghost bucket, the listed ids and one bucket for all others: there every divergence is exact
on K + 1 classes. Merging is a loss of information, which makes an f-divergence a lower bound of
that over the vocabulary; `adaptive_kl`, whose weight changes with the classes, may come out larger.
"""

import math
from collections.abc import Callable
from functools import partial

import torch

from kdscale.config.loss import DivergenceConfig
from kdscale.types import DenseTargets, SparseTargets, Targets

# Rounding at rest may leave a listed id or the ghost bucket nothing of what the teacher gave it.
_SMALLEST_MASS = 1e-8

_LEAST_LOG = math.log(torch.finfo(torch.float32).tiny)

Divergence = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""From log p and log q to a scalar."""


def make_divergence(config: DivergenceConfig) -> Divergence | None:
    """Return the function of `config`; None for the forward KL, which the fused loss has itself."""
    if config.kind == "forward_kl":
        return None
    options = config.model_dump(exclude={"kind"})
    return partial(globals()[f"{config.kind}_sum"], **options)


def merged_log_probs(targets: SparseTargets) -> torch.Tensor:
    """Return log p [..., K + 1] of the listed ids and the ghost bucket, which `targets` must have.

    No class counts for less than 1e-8.
    """
    assert targets.ghost is not None
    p = torch.cat([targets.probs, targets.ghost[..., None]], dim=-1)
    return p.clamp_min(_SMALLEST_MASS).log()


def entropy_sum(targets: Targets) -> torch.Tensor:
    """Return the sum over positions of a target's entropy over its classes, in nats; a scalar."""
    if isinstance(targets, DenseTargets):
        known = targets.log_probs.masked_fill(targets.log_probs == -math.inf, 0.0)
        return -(targets.log_probs.exp() * known).sum()
    total = torch.special.entr(targets.probs).sum()
    return total if targets.ghost is None else total + torch.special.entr(targets.ghost).sum()


def forward_kl_sum(log_p: torch.Tensor, log_q: torch.Tensor) -> torch.Tensor:
    """Return the sum of KL(p || q) = sum_v p (log p - log q) over positions; [..., C] -> scalar."""
    return _terms(log_p, log_q).sum()


def reverse_kl_sum(log_p: torch.Tensor, log_q: torch.Tensor) -> torch.Tensor:
    """Return the sum of KL(q || p) over positions; [..., C] -> scalar."""
    return _terms(log_q, log_p).sum()


def jensen_shannon_sum(log_p: torch.Tensor, log_q: torch.Tensor, beta: float) -> torch.Tensor:
    """Return the sum of b KL(p || m) + (1 - b) KL(q || m) over positions; [..., C] -> scalar.

    m = b p + (1 - b) q with 0 < b < 1: the generalised JSD of GKD (Agarwal et al., ICLR 2024).
    Towards 0 it vanishes like b KL(p || q), towards 1 like (1 - b) KL(q || p).
    """
    log_m = _mix(log_p, log_q, beta)
    return (beta * _terms(log_p, log_m) + (1 - beta) * _terms(log_q, log_m)).sum()


def skewed_kl_sum(log_p: torch.Tensor, log_q: torch.Tensor, alpha: float) -> torch.Tensor:
    """Return the sum of KL(p || a p + (1 - a) q) over positions, 0 <= a < 1; [..., C] -> scalar.

    Ko et al., "DistiLLM", ICML 2024.
    """
    return _terms(log_p, _mix(log_p, log_q, alpha)).sum()


def skewed_reverse_kl_sum(log_p: torch.Tensor, log_q: torch.Tensor, alpha: float) -> torch.Tensor:
    """Return the sum of KL(q || a q + (1 - a) p) over positions, 0 <= a < 1; [..., C] -> scalar.

    Ko et al., "DistiLLM", ICML 2024.
    """
    return _terms(log_q, _mix(log_q, log_p, alpha)).sum()


def adaptive_kl_sum(log_p: torch.Tensor, log_q: torch.Tensor, head_mass: float) -> torch.Tensor:
    """Return the sum of w KL(p || q) + (1 - w) KL(q || p) over positions; [..., C] -> scalar.

    The head of a position are the fewest of its most probable classes that hold `head_mass` of p,
    the one that reaches it included (the authors' published code leaves that one out, unless it is
    the first); w is the head's share of sum_v |p - q|, a constant for the gradient. Wu et al.,
    "Rethinking Kullback-Leibler divergence in knowledge distillation for LLMs", COLING 2025.
    """
    with torch.no_grad():
        p, order = log_p.exp().sort(dim=-1, descending=True)
        distance = (p - log_q.exp().gather(-1, order)).abs()
        # A class belongs to the head if what stands before it does not reach the mass yet.
        in_head = p.cumsum(dim=-1) - p < head_mass
        whole = distance.sum(dim=-1)
        share = torch.where(whole > 0, (distance * in_head).sum(dim=-1) / whole, 0.5)[..., None]
    forward, reverse = _terms(log_p, log_q), _terms(log_q, log_p)
    return (share * forward + (1 - share) * reverse).sum()


def total_variation_sum(log_p: torch.Tensor, log_q: torch.Tensor) -> torch.Tensor:
    """Return the sum of 1/2 sum_v |p - q| over positions; [..., C] -> scalar."""
    return 0.5 * (log_p.exp() - log_q.exp()).abs().sum()


def logit_mse_sum(log_p: torch.Tensor, log_q: torch.Tensor) -> torch.Tensor:
    """Return the sum of mean_v (x_v - y_v)^2 over positions; [..., C] -> scalar.

    x and y are the logits less their mean over the classes that p has, which log-probabilities know
    as well as logits do. What q puts in other classes is not counted.
    """
    known = torch.isfinite(log_p)
    count = known.sum(dim=-1, keepdim=True)
    difference = torch.where(known, log_q - log_p, 0.0)
    centred = difference - difference.sum(dim=-1, keepdim=True) / count
    return (torch.where(known, centred, 0.0) ** 2 / count).sum()


def _mix(log_p: torch.Tensor, log_q: torch.Tensor, share: float) -> torch.Tensor:
    """Return log(share p + (1 - share) q), without leaving the logarithm."""
    if share == 0:
        return log_q
    known = torch.isfinite(log_p)
    # On the host, where they are: a kernel takes them as arguments, and nothing is copied.
    weights = torch.tensor([share, 1 - share], dtype=log_p.dtype).log()
    # -inf on both sides would have no gradient; where one side is, the other is the mixture.
    safe_p = torch.where(known, log_p, torch.finfo(log_p.dtype).min / 2)
    safe_q = log_q.clamp_min(torch.finfo(log_q.dtype).min / 2)
    return torch.logaddexp(safe_p + weights[0], safe_q + weights[1])


def _terms(log_a: torch.Tensor, log_b: torch.Tensor) -> torch.Tensor:
    """Return a (log a - log b), the terms of KL(a || b): 0 where a is 0."""
    known = log_a.masked_fill(log_a == -math.inf, 0.0)
    return log_a.exp() * (known - log_b.masked_fill(log_b == -math.inf, _LEAST_LOG))
