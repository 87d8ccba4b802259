"""A codec's fidelity: the effect of its targets on a student's gradient, over many positions.

With S independent draws of the targets of each position, bias and variance come apart: the squared
length of the mean error over the draws is the squared bias plus 1/S of the variance, which is taken
off. So the estimate of the squared bias is itself unbiased, and may fall below 0.

A student never sees one position. The mean gradient over n positions is what it steps along: noise
falls there with n, bias does not. Both are given relative to the length of the true mean gradient.
"""

from collections import defaultdict
from dataclasses import dataclass

import torch
from torch import Tensor

from kdscale.cache.fidelity.gradient import Truth, ghost_share, gradient_error, merge
from kdscale.types import DenseTargets, SparseTargets, Targets

CHUNK = 64
"""Positions to measure at a time: with V = 152,064, p and q take 78 MB in float32."""


@dataclass(frozen=True)
class Direction:
    """The mean gradient over `positions` compared with the true one."""

    positions: int
    error: float  # |mean error| / |true mean gradient|, root mean squares over all means taken
    cosine: float  # between the two, the mean over all means taken


@dataclass(frozen=True)
class Fidelity:
    """A codec's measures: means over positions and draws. Loss and KL in nats per token."""

    positions: int
    draws: int
    squared_bias: float  # of the gradient, summed over V
    squared_bias_error: float  # its standard error
    variance: float  # of the gradient, summed over V
    kept_mass: float  # the teacher's probability of the ids listed
    distinct_ids: float
    loss_bias: float  # soft cross-entropy against the target less that against p, at the student
    loss_bias_error: float
    kl: float | None  # KL(p || target); None where p has ids of which the target says 0
    directions: tuple[Direction, ...]  # over 1 position, and over the numbers asked for

    @property
    def widest(self) -> Direction:
        """The mean over most positions."""
        return self.directions[-1]


class Measure:
    """Collector of one codec's errors over chunks of positions."""

    def __init__(self, widths: tuple[int, ...] = (CHUNK, 64 * CHUNK)) -> None:
        """Take mean gradients over `widths` positions, in rising order."""
        self._columns: dict[str, list[Tensor]] = defaultdict(list)
        self._means = [_MeanGradients(width) for width in widths]
        self._draws = 0

    def add(self, truth: Truth, targets: Targets) -> None:
        """Add the `targets` [S, P] of a chunk: S independent draws, 1 of a deterministic codec.

        Every width must be a multiple of P; the last chunk may be shorter.
        """
        error = gradient_error(truth, targets)
        self._draws = len(error.scale)
        square = error.square()
        of_mean = error.mean().square()[0] if self._draws > 1 else square[0]
        along = error.along_gradient()
        columns = {
            **_bias_and_variance(square.mean(0), of_mean, self._draws),
            "error": square.mean(0),
            "gradient": truth.gradient_square,
            "cosine": _cosine(truth.gradient_square, square, along).mean(0),
            **_of_targets(truth, targets),
        }
        for name, values in columns.items():
            self._columns[name].append(values.double().cpu())
        total = error.sum()
        for mean in self._means:
            mean.add(total, truth.gradient_sum, len(truth.p))

    def result(self) -> Fidelity:
        """Return the measures so far, without widths that had too few positions."""
        columns = {name: torch.cat(parts) for name, parts in self._columns.items()}
        count = len(columns["error"])

        def mean(name: str) -> float:
            return columns[name].mean().item()

        def standard_error(name: str) -> float:
            return (columns[name].std() / count**0.5).item()

        single = Direction(1, (mean("error") / mean("gradient")) ** 0.5, mean("cosine"))
        means = [found for group in self._means if (found := group.result()) is not None]
        return Fidelity(
            positions=count,
            draws=self._draws,
            squared_bias=mean("bias"),
            squared_bias_error=standard_error("bias"),
            variance=mean("variance"),
            kept_mass=mean("kept"),
            distinct_ids=mean("distinct"),
            loss_bias=mean("loss"),
            loss_bias_error=standard_error("loss"),
            kl=mean("kl") if "kl" in columns and columns["kl"].isfinite().all() else None,
            directions=(single, *means),
        )


class _MeanGradients:
    """Mean gradients over groups of `width` consecutive positions."""

    def __init__(self, width: int) -> None:
        self._width = width
        self._count = 0
        self._error: Tensor | float = 0.0  # [S, V], sums over the group so far
        self._gradient: Tensor | float = 0.0  # [V]
        self._squares: list[tuple[float, float, float]] = []

    def add(self, error: Tensor, gradient: Tensor, count: int) -> None:
        """Add sums of the error [S, V] and the gradient [V] over `count` more positions."""
        self._error, self._gradient = self._error + error, self._gradient + gradient
        self._count += count
        assert self._count <= self._width
        if self._count == self._width:
            self._close(self._error, self._gradient)
            self._count, self._error, self._gradient = 0, 0.0, 0.0

    def _close(self, error: Tensor, gradient: Tensor) -> None:
        square, along = error.square().sum(-1), error @ gradient
        true = gradient.square().sum()
        cosine = _cosine(true, square, along)
        self._squares.append((square.mean().item(), true.item(), cosine.mean().item()))

    def result(self) -> Direction | None:
        """Return None where there were not enough positions for one mean."""
        if not self._squares:
            return None
        error, true, cosine = torch.tensor(self._squares, dtype=torch.float64).mean(0).tolist()
        return Direction(self._width, (error / true) ** 0.5, cosine)


def _bias_and_variance(square: Tensor, of_mean: Tensor, draws: int) -> dict[str, Tensor]:
    """Split the mean over draws of |e|^2 and |mean e|^2, [P] each; unbiased, summed over V."""
    if draws == 1:
        return {"bias": square, "variance": torch.zeros_like(square)}
    variance = (square - of_mean) * draws / (draws - 1)
    return {"bias": of_mean - variance / draws, "variance": variance}


def _cosine(true: Tensor, error: Tensor, along: Tensor) -> Tensor:
    """Return the cosine between g and g + e, from |g|^2, |e|^2 and e g."""
    found = (true + 2 * along + error).clamp_min(0)
    return (true + along) / (true * found).sqrt().clamp_min(torch.finfo(true.dtype).tiny)


def _of_targets(truth: Truth, targets: Targets) -> dict[str, Tensor]:
    """Return kept mass, distinct ids, bias of the loss and, where it is finite, KL: [P] each."""
    if isinstance(targets, DenseTargets):
        return _of_dense(truth, targets)
    ids, probs, first = merge(targets.ids, targets.probs.double())
    p, q = (
        rows.expand(len(ids), *rows.shape).gather(-1, ids).double() * first
        for rows in (truth.p, truth.q)
    )
    share = ghost_share(targets, truth.q_mass - q.sum(-1))
    unlisted = truth.q_log_q - torch.xlogy(q, q).sum(-1)
    # A repeated id has q = 0 in its other places, but nothing to say there either.
    log_q = q.where(first, 1.0).log()
    loss = truth.p_log_q - (probs * log_q).sum(-1) - share * unlisted
    columns = {"kept": p.sum(-1).mean(0), "distinct": first.sum(-1).double().mean(0)}
    columns["loss"] = loss.mean(0)
    if targets.ghost is not None:
        columns["kl"] = _ghost_kl(truth, targets, (p, q, probs), share).mean(0)
    return columns


def _of_dense(truth: Truth, targets: DenseTargets) -> dict[str, Tensor]:
    probs = targets.log_probs.exp()
    loss = truth.p_log_q - torch.xlogy(probs, truth.q).sum(-1, dtype=torch.float64)
    cross = torch.where(truth.p > 0, truth.p * targets.log_probs, 0.0).sum(-1, dtype=torch.float64)
    return {
        "kept": torch.where(probs > 0, truth.p, 0.0).sum(-1).mean(0),
        "distinct": (probs > 0).sum(-1).double().mean(0),
        "loss": loss.mean(0),
        "kl": (truth.p_log_p - cross).mean(0),
    }


def _ghost_kl(
    truth: Truth, targets: SparseTargets, listed: tuple[Tensor, Tensor, Tensor], share: Tensor
) -> Tensor:
    """Return KL(p || t), [S, P], with t completed by the ghost's shares of the student.

    listed: p, q and t at the listed ids. Rounding can leave the bucket nothing while p still has
    some mass there; the loss holds it above a smallest mass, and so does this.
    """
    p, q, probs = listed
    rest = (truth.p_mass - p.sum(-1)).clamp_min(0)
    tail = truth.p_log_q - torch.xlogy(p, q).sum(-1)
    log_share = share.clamp_min(1e-8).log()
    return truth.p_log_p - torch.xlogy(p, probs).sum(-1) - tail - rest * log_share
