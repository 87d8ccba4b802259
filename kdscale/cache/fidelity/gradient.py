"""The error that a target makes in the gradient of the loss with respect to the logits.

For a target t, the teacher's p and the student's q at one position, the soft cross-entropy has the
gradient s q - t with s = sum t, where p has q - p. Where t sums to 1 their difference is p - t and
the student drops out. A ghost bucket g gives each id j that is not listed a share of it in
proportion to the student: differentiating -g log(1 - sum of the listed q) shows that it acts as a
target g q_j / r, with r the student's mass at all ids that are not listed. So the error of such a
target depends on the student.

Every error has the form e = base + scale * q + (values at a few ids), with base = p for sparse
targets. Norms and inner products then cost K operations a position once those of p and q are known,
and V is touched no more often for twenty codecs than for one.
"""

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from kdscale.types import DenseTargets, SparseTargets, Targets

# A difference of sums in float64 is rounding below it: the bucket then has no ids, and no gradient.
_SMALLEST_MASS = 1e-12


@dataclass(frozen=True)
class Truth:
    """Teacher and student at P positions, and the sums over V that every codec's measure needs."""

    p: Tensor  # [P, V] float32, the teacher's distribution
    q: Tensor  # [P, V] float32, a student's

    @cached_property
    def p_mass(self) -> Tensor:
        """Sum of p, [P] float64: 1 but for the rounding of each p."""
        return self.p.sum(-1, dtype=torch.float64)

    @cached_property
    def q_mass(self) -> Tensor:
        """Sum of q, [P] float64."""
        return self.q.sum(-1, dtype=torch.float64)

    @cached_property
    def pp(self) -> Tensor:
        """|p|^2, [P] float64."""
        return _square(self.p)

    @cached_property
    def qq(self) -> Tensor:
        """|q|^2, [P] float64."""
        return _square(self.q)

    @cached_property
    def pq(self) -> Tensor:
        """Inner product of p and q, [P] float64."""
        return (self.p * self.q).sum(-1, dtype=torch.float64)

    @cached_property
    def p_log_p(self) -> Tensor:
        """Sum of p log p, [P] float64, nats."""
        return torch.xlogy(self.p, self.p).sum(-1, dtype=torch.float64)

    @cached_property
    def p_log_q(self) -> Tensor:
        """Sum of p log q, [P] float64, nats."""
        return torch.xlogy(self.p, self.q).sum(-1, dtype=torch.float64)

    @cached_property
    def q_log_q(self) -> Tensor:
        """Sum of q log q, [P] float64, nats."""
        return torch.xlogy(self.q, self.q).sum(-1, dtype=torch.float64)

    @cached_property
    def p_sum(self) -> Tensor:
        """Sum of p over positions, [V] float64."""
        return self.p.sum(0, dtype=torch.float64)

    @cached_property
    def gradient_sum(self) -> Tensor:
        """Sum of q - p over positions, [V] float64."""
        return self.q.sum(0, dtype=torch.float64) - self.p_sum

    @cached_property
    def gradient_square(self) -> Tensor:
        """|q - p|^2, [P] float64."""
        # Where q is p, rounding can leave less than nothing.
        return (self.qq - 2 * self.pq + self.pp).clamp_min(0)


def make_truth(logits: Tensor, temperature: float = 1.0) -> Truth:
    """Return the teacher of `logits` [P, V], with a stand-in for a student of half the context.

    The stand-in's logits are the mean of a position's and of those before it (of the first, the
    last). It errs as students do: over 1,024 positions of SmolLM2-135M, 12 ids and a bucket make an
    error of 0.26 at it, of 0.25 and 0.28 at two students of a short run; DistillKit's 128 ids 0.29,
    0.30 and 0.26; varopt's 12 ids 0.18, 0.18 and 0.16. Other stand-ins mislead. A flatter teacher
    makes a bucket look harmless, as its tail has the teacher's shape already. In a mixture with the
    corpus average the mean gradient vanishes over many positions, and with it all that errors are
    relative to.
    """
    scaled = logits.float() / temperature
    blurred = (scaled + scaled.roll(1, 0)) / 2
    return Truth(_softmax(scaled), _softmax(blurred))


@dataclass(frozen=True)
class GradientError:
    """Errors e = base + scale * q + (values at ids), of S draws of the targets of P positions.

    All ids of a position differ, or have the value 0.
    """

    truth: Truth
    base: Tensor | None  # [S, P, V] float32; None stands for p
    scale: Tensor  # [S, P] float64
    ids: Tensor  # [S, P, K] int64
    values: Tensor  # [S, P, K] float64

    def square(self) -> Tensor:
        """|e|^2, [S, P] float64."""
        truth = self.truth
        norm = truth.pp if self.base is None else _square(self.base)
        with_q = truth.pq if self.base is None else _dot(self.base, truth.q)
        at_ids = self._base_at_ids() + self.scale[..., None] * _at(truth.q, self.ids)
        sparse = (self.values * (self.values + 2 * at_ids)).sum(-1)
        return norm + 2 * self.scale * with_q + self.scale.square() * truth.qq + sparse

    def along_gradient(self) -> Tensor:
        """Return e (q - p), [S, P] float64."""
        truth = self.truth
        if self.base is None:
            base = truth.pq - truth.pp
        else:
            base = _dot(self.base, truth.q) - _dot(self.base, truth.p)
        sparse = (self.values * (_at(truth.q, self.ids) - _at(truth.p, self.ids))).sum(-1)
        return base + self.scale * (truth.qq - truth.pq) + sparse

    def sum(self) -> Tensor:
        """Return e summed over positions, [S, V] float64."""
        draws, vocab_size = len(self.scale), self.truth.p.shape[-1]
        base = self.truth.p_sum if self.base is None else self.base.sum(1, dtype=torch.float64)
        total = base + (self.scale.float() @ self.truth.q).double()
        offsets = torch.arange(draws, device=self.ids.device)[:, None, None] * vocab_size
        places = (self.ids + offsets).flatten()
        return total.flatten().index_add(0, places, self.values.flatten()).view(draws, vocab_size)

    def mean(self) -> "GradientError":
        """Return the mean over the S draws, as one draw."""
        draws = len(self.scale)
        ids, values, _ = merge(
            self.ids.transpose(0, 1).flatten(1), self.values.transpose(0, 1).flatten(1) / draws
        )
        base = None if self.base is None else self.base.mean(0, keepdim=True)
        return GradientError(
            self.truth, base, self.scale.mean(0, keepdim=True), ids[None], values[None]
        )

    def _base_at_ids(self) -> Tensor:
        return _at(self.truth.p, self.ids) if self.base is None else self.base.gather(-1, self.ids)


def gradient_error(truth: Truth, targets: Targets) -> GradientError:
    """Return the error of `targets` [S, P]: S draws at P positions."""
    if isinstance(targets, DenseTargets):
        probs = targets.log_probs.exp()
        none = torch.empty(*probs.shape[:-1], 0, device=probs.device)
        excess = probs.sum(-1, dtype=torch.float64) - 1
        return GradientError(truth, truth.p - probs, excess, none.long(), none.double())
    ids, probs, first = merge(targets.ids, targets.probs.double())
    listed = _at(truth.q, ids) * first
    share = ghost_share(targets, truth.q_mass - listed.sum(-1))
    mass = probs.sum(-1) if targets.ghost is None else probs.sum(-1) + targets.ghost
    return GradientError(truth, None, mass - share - 1, ids, share[..., None] * listed - probs)


def ghost_share(targets: SparseTargets, rest: Tensor) -> Tensor:
    """Return the ghost bucket's share of an unlisted id over its q: [S, P] float64."""
    if targets.ghost is None:
        return torch.zeros_like(rest)
    share = targets.ghost.double() / rest.clamp_min(_SMALLEST_MASS)
    return torch.where(rest > _SMALLEST_MASS, share, 0.0)


def merge(ids: Tensor, values: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Sort `ids` [..., K], and sum `values` by id; the third result masks the first of each id.

    The first place of an id has the sum of its values, the other places have 0.
    """
    ids, order = ids.sort(-1)
    first = torch.ones_like(ids, dtype=torch.bool)
    first[..., 1:] = ids[..., 1:] != ids[..., :-1]
    group = first.long().cumsum(-1) - 1
    sums = torch.zeros_like(values).scatter_add_(-1, group, values.gather(-1, order))
    return ids, sums.gather(-1, group) * first, first


def _softmax(logits: Tensor) -> Tensor:
    """[P, V] float32. On CPUs torch's own sums to 1 within 4e-4 only where V is large."""
    found = logits.softmax(-1)
    return found / found.sum(-1, keepdim=True)


def _at(rows: Tensor, ids: Tensor) -> Tensor:
    """Return rows [P, V] at ids [S, P, K]: [S, P, K] float64."""
    return rows.expand(len(ids), *rows.shape).gather(-1, ids).double()


def _square(rows: Tensor) -> Tensor:
    return torch.linalg.vector_norm(rows, dim=-1, dtype=torch.float64).square()


def _dot(rows: Tensor, others: Tensor) -> Tensor:
    return (rows * others).sum(-1, dtype=torch.float64)
