"""Divergences between a teacher p and a student q over C classes: pure functions that return sums.

Every function takes log p and log q, [..., C] float32, normalised over the last dimension, and
returns a scalar, the sum over all positions in nats; autograd differentiates it in log q. A class
without probability in p (log p = -inf: the padding of an embedding) counts as nothing. The classes
are the vocabulary or, for targets with a ghost bucket, the listed ids and one bucket for all others
(`classes`): there every divergence is exact on K + 1 classes and, merging being a loss of
information, a lower bound of the divergence over the vocabulary.
"""

from collections.abc import Callable
from functools import partial

import torch

from kdscale.config.loss import DivergenceConfig
from kdscale.types import DenseTargets, Targets

# The ghost bucket's share of the student is 1 - sum q: float32 may make it 0 or less.
SMALLEST_MASS = 1e-8


Divergence = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""From log p and log q to a scalar."""


def make_divergence(config: DivergenceConfig) -> Divergence | None:
    """The function of `config`; None for the forward KL, which the fused loss has itself."""
    if config.kind == "forward_kl":
        return None
    options = config.model_dump(exclude={"kind"})
    return partial(globals()[f"{config.kind}_sum"], **options)


def classes(logits: torch.Tensor, targets: Targets) -> tuple[torch.Tensor, torch.Tensor]:
    """log p and log q [P, C] of `targets` and `logits` ([P, V] float32, divided by the
    temperature): over V of dense targets, over K + 1 of sparse ones, which must have a ghost
    bucket."""
    log_q = torch.log_softmax(logits, dim=-1)
    if isinstance(targets, DenseTargets):
        return targets.log_probs, log_q
    assert targets.ghost is not None
    listed = log_q.gather(-1, targets.ids)
    rest = (1 - listed.exp().sum(dim=-1, keepdim=True)).clamp_min(SMALLEST_MASS).log()
    p = torch.cat([targets.probs, targets.ghost[..., None]], dim=-1)
    return p.log(), torch.cat([listed, rest], dim=-1)


def entropy_sum(targets: Targets) -> torch.Tensor:
    """Sum over positions of the entropy of a target over its classes, nats; a scalar."""
    if isinstance(targets, DenseTargets):
        return -_expectation(targets.log_probs, targets.log_probs, torch.zeros(()))
    total = torch.special.entr(targets.probs).sum()
    return total if targets.ghost is None else total + torch.special.entr(targets.ghost).sum()


def forward_kl_sum(log_p: torch.Tensor, log_q: torch.Tensor) -> torch.Tensor:
    """Sum of KL(p || q) = sum_v p (log p - log q) over positions; [..., C] -> scalar."""
    return _expectation(log_p, log_p, log_q)


def reverse_kl_sum(log_p: torch.Tensor, log_q: torch.Tensor) -> torch.Tensor:
    """Sum of KL(q || p) over positions; [..., C] -> scalar. Where p is 0, q is not counted."""
    return _expectation(log_q, log_q, log_p)


def jensen_shannon_sum(log_p: torch.Tensor, log_q: torch.Tensor, beta: float) -> torch.Tensor:
    """Sum of b KL(p || m) + (1 - b) KL(q || m) with m = b p + (1 - b) q over positions, for
    0 < b < 1; [..., C] -> scalar. The generalised JSD of GKD (Agarwal et al., ICLR 2024)."""
    log_m = _mix(log_p, log_q, beta)
    return beta * _expectation(log_p, log_p, log_m) + (1 - beta) * _expectation(log_q, log_q, log_m)


def skewed_kl_sum(log_p: torch.Tensor, log_q: torch.Tensor, alpha: float) -> torch.Tensor:
    """Sum of KL(p || a p + (1 - a) q) over positions, 0 <= a < 1; [..., C] -> scalar. DistiLLM (Ko
    et al., ICML 2024)."""
    return _expectation(log_p, log_p, _mix(log_p, log_q, alpha))


def skewed_reverse_kl_sum(log_p: torch.Tensor, log_q: torch.Tensor, alpha: float) -> torch.Tensor:
    """Sum of KL(q || a q + (1 - a) p) over positions, 0 <= a < 1; [..., C] -> scalar. DistiLLM."""
    return _expectation(log_q, log_q, _mix(log_q, log_p, alpha))


def adaptive_kl_sum(log_p: torch.Tensor, log_q: torch.Tensor, head_mass: float) -> torch.Tensor:
    """Sum of w KL(p || q) + (1 - w) KL(q || p) over positions; [..., C] -> scalar.

    The head of a position are its most probable classes that hold `head_mass` of p; w is the head's
    share of sum_v |p - q|, a constant for the gradient. Wu et al., "Rethinking Kullback-Leibler
    divergence in knowledge distillation for LLMs", COLING 2025.
    """
    with torch.no_grad():
        p, order = log_p.exp().sort(dim=-1, descending=True)
        distance = (p - log_q.exp().gather(-1, order)).abs()
        # A class belongs to the head if what stands before it does not reach the mass yet.
        in_head = p.cumsum(dim=-1) - p < head_mass
        whole = distance.sum(dim=-1)
        share = torch.where(whole > 0, (distance * in_head).sum(dim=-1) / whole, 0.5)[..., None]
    forward = _terms(log_p, log_p, log_q)
    reverse = _terms(log_q, log_q, log_p)
    return (share * forward + (1 - share) * reverse).sum()


def total_variation_sum(log_p: torch.Tensor, log_q: torch.Tensor) -> torch.Tensor:
    """Sum of 1/2 sum_v |p - q| over positions; [..., C] -> scalar."""
    return 0.5 * (log_p.exp() - log_q.exp()).abs().sum()


def logit_mse_sum(log_p: torch.Tensor, log_q: torch.Tensor) -> torch.Tensor:
    """Sum of mean_v (x_v - y_v)^2 over positions; [..., C] -> scalar. x and y are the logits less
    their mean over the classes that p has, which log-probabilities know as well as logits do."""
    known = torch.isfinite(log_p)
    count = known.sum(dim=-1, keepdim=True)
    difference = torch.where(known, log_q - log_p, 0.0)
    centred = difference - difference.sum(dim=-1, keepdim=True) / count
    return (torch.where(known, centred, 0.0) ** 2 / count).sum()


def _mix(log_p: torch.Tensor, log_q: torch.Tensor, share: float) -> torch.Tensor:
    """log(share p + (1 - share) q), without leaving the logarithm."""
    if share == 0:
        return log_q
    known = torch.isfinite(log_p)
    weights = torch.tensor([share, 1 - share], device=log_p.device, dtype=log_p.dtype).log()
    # -inf on both sides would have no gradient; where one side is, the other is the mixture.
    safe_p = torch.where(known, log_p, torch.finfo(log_p.dtype).min / 2)
    safe_q = log_q.clamp_min(torch.finfo(log_q.dtype).min / 2)
    return torch.logaddexp(safe_p + weights[0], safe_q + weights[1])


def _expectation(weight: torch.Tensor, first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    return _terms(weight, first, second).sum()


def _terms(weight: torch.Tensor, first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """exp(weight) (first - second), 0 where any of them is -inf."""
    known = torch.isfinite(weight) & torch.isfinite(first) & torch.isfinite(second)
    difference = torch.where(known, first, 0.0) - torch.where(known, second, 0.0)
    return torch.where(known, weight.exp() * difference, 0.0)
