"""The Triton kernels on the CPU, by Triton's interpreter, against dense float64.

`test_triton_chunk.py` runs this file in a process of its own, where Triton is imported with
TRITON_INTERPRET=1: it looks at that only once.
"""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest
import torch

from kdscale.losses import divergences, kernels, triton_chunk, triton_dense
from kdscale.losses.fused import Objective, head_and_loss
from kdscale.types import Head, SparseTargets, TeacherLogits
from tests.unit.losses.test_fused import naive, part_of, randn, relative_error, targets_of


@pytest.fixture(autouse=True)
def several_blocks() -> Iterator[None]:
    """Cut the few ids of a test into blocks."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(triton_chunk, "_BLOCK", 32)
        patch.setattr(triton_dense, "_BLOCK", 32)
        yield


def expected(
    raw: torch.Tensor,
    labels: torch.Tensor,
    targets: SparseTargets | None,
    kd_weight: float,
    weights: torch.Tensor | None,
    scale: float,
    softcap: float | None,
) -> tuple[float, torch.Tensor]:
    """Return the objective of products `raw` and its gradient, in float64 by autograd."""
    exact = raw.double().requires_grad_()
    identity = torch.eye(raw.shape[1], dtype=torch.float64)
    head = Head(identity, None, raw.shape[1], scale, softcap)
    none = SparseTargets(labels[:, None].clamp_min(0), torch.zeros(len(raw), 1))
    weights = None if weights is None else weights.double()
    value = naive(
        exact, head, identity, None, labels, targets or none, Objective(kd_weight), weights
    )
    value.backward()
    assert exact.grad is not None
    return value.item(), exact.grad


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("codec", ["varopt", "sample", "weighted sample", "topk"])
@pytest.mark.parametrize(("scale", "softcap"), [(1.0, None), (0.5, None), (0.5, 3.0)])
@pytest.mark.parametrize("weighted", [False, True])
def test_values_and_gradients(
    codec: str,
    dtype: torch.dtype,
    scale: float,
    softcap: float | None,
    weighted: bool,
) -> None:
    positions, vocab, kd_weight = 7, 75, 0.3
    memory = (3 * randn(0, positions, 128)).to(dtype)
    raw = memory[:, :vocab]
    labels = torch.arange(positions) * 11 % vocab
    targets = targets_of(codec, positions, vocab, 0)
    assert isinstance(targets, SparseTargets)
    # A label that is listed, and one that is listed twice.
    labels[1] = targets.ids[1, 0]
    if targets.ghost is None:
        targets.ids[2, 1] = targets.ids[2, 0]
        labels[2] = targets.ids[2, 0]
    weights = torch.arange(positions) % 3 / 2 if weighted else None
    value, gradient = expected(raw, labels, targets, kd_weight, weights, scale, softcap)

    hard = (1 - kd_weight) * (torch.ones(positions) if weights is None else weights)
    beside = memory[:, vocab:].clone()
    sums = torch.empty(positions, 3)
    triton_chunk.sparse_chunk(
        raw,
        sums,
        labels,
        hard,
        targets.ids,
        targets.probs,
        targets.ghost,
        kd_weight,
        scale,
        softcap,
    )
    found = (hard * sums[:, 0] + kd_weight * sums[:, 1]).double().sum().item()
    assert found == pytest.approx(value, rel=1e-5)
    if dtype == torch.float32:
        torch.testing.assert_close(raw.double(), gradient, rtol=1e-4, atol=1e-6)
    else:
        # Rounded once; the interpreter cuts off what a GPU rounds.
        torch.testing.assert_close(raw.double(), gradient, rtol=2**-7, atol=1e-6)
    assert torch.equal(memory[:, vocab:], beside)


def beside_a_teacher(
    dtype: torch.dtype,
    temperatures: tuple[float, float],
    transform: tuple[float, float | None],
    distil: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
    figure: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
    *,
    weighted: bool = True,
    **options: Any,
) -> None:
    """Compare the kernel with float64: `distil` and `figure` take log p and log q, [C, V] each."""
    positions, vocab, kd_weight = 4, 75, 0.3
    raw, teacher = ((3 * randn(seed, positions, 128)).to(dtype)[:, :vocab] for seed in (0, 1))
    teacher[:, 5] = -torch.inf
    labels = torch.arange(positions) * 11 % vocab
    weights = torch.arange(positions) % 3 / 2 if weighted else torch.ones(positions)
    (own, theirs), (scale, softcap) = temperatures, transform
    exact = raw.double().requires_grad_()
    z = scale * exact if softcap is None else softcap * torch.tanh(scale * exact / softcap)
    log_p, log_q = (teacher.double() / theirs).log_softmax(-1), (z / own).log_softmax(-1)
    surprise = -z.log_softmax(-1).gather(-1, labels[:, None])[:, 0]
    hard = (1 - kd_weight) * weights
    soft = distil(log_p, log_q)
    (hard * surprise + kd_weight * own**2 * soft).sum().backward()
    assert exact.grad is not None

    values = torch.empty(positions, 3)
    share = options.pop("teacher_share", None)
    triton_dense.dense_chunk(
        *(raw, values, labels, hard, teacher, kd_weight, own, theirs, share, scale, softcap),
        **options,
    )
    wanted = torch.stack([surprise, soft, figure(log_p, log_q)], dim=-1)
    torch.testing.assert_close(values.double(), wanted.detach(), rtol=1e-5, atol=1e-5)
    rtol = 1e-4 if dtype == torch.float32 else 2**-7
    torch.testing.assert_close(raw.double(), exact.grad, rtol=rtol, atol=2e-6)


def cross_entropy(log_p: torch.Tensor, log_q: torch.Tensor) -> torch.Tensor:
    return -(log_p.exp() * log_q).sum(-1)


def entropy(log_p: torch.Tensor, _: torch.Tensor) -> torch.Tensor:
    return torch.special.entr(log_p.exp()).sum(-1)


DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
TRANSFORMS = pytest.mark.parametrize("transform", [(1.0, None), (0.5, 3.0)])
BOTH = pytest.mark.parametrize(
    ("temperatures", "transform"), [((1.0, 1.0), (1.0, None)), ((1.5, 2.0), (0.5, 3.0))]
)


@DTYPES
@BOTH
@pytest.mark.parametrize("weighted", [False, True])
def test_values_and_gradients_beside_a_teacher(
    dtype: torch.dtype,
    temperatures: tuple[float, float],
    transform: tuple[float, float | None],
    weighted: bool,
) -> None:
    beside_a_teacher(dtype, temperatures, transform, cross_entropy, entropy, weighted=weighted)


@DTYPES
@BOTH
@pytest.mark.parametrize(
    "divergence",
    [
        divergences.reverse_kl_sum,
        partial(divergences.jensen_shannon_sum, beta=0.3),
        partial(divergences.skewed_kl_sum, alpha=0.1),
        partial(divergences.skewed_reverse_kl_sum, alpha=0.1),
        divergences.total_variation_sum,
    ],
)
def test_divergences_beside_a_teacher(
    dtype: torch.dtype,
    temperatures: tuple[float, float],
    transform: tuple[float, float | None],
    divergence: divergences.Divergence,
) -> None:
    def by_position(log_p: torch.Tensor, log_q: torch.Tensor) -> torch.Tensor:
        return torch.stack([divergence(*each) for each in zip(log_p, log_q, strict=True)])

    kind = kernels._kind(divergence)
    assert kind is not None
    options = {"kind": kind[0], "share": kind[1]}
    beside_a_teacher(dtype, temperatures, transform, by_position, entropy, **options)


@DTYPES
@TRANSFORMS
@pytest.mark.parametrize("share", [0.0, 0.4, 1.0])
def test_targets_between_student_and_teacher(
    dtype: torch.dtype, transform: tuple[float, float | None], share: float
) -> None:
    def towards(log_p: torch.Tensor, log_q: torch.Tensor) -> torch.Tensor:
        mixed = (1 - share) * log_q.detach() + share * log_p.clamp_min(-1e9)
        mixed[:, 5] = -torch.inf
        return cross_entropy(mixed.log_softmax(-1), log_q)

    def kl(log_p: torch.Tensor, log_q: torch.Tensor) -> torch.Tensor:
        return cross_entropy(log_p, log_q) - entropy(log_p, log_q)

    beside_a_teacher(dtype, (1.5, 1.5), transform, towards, kl, teacher_share=share)


@pytest.mark.parametrize(
    ("divergence", "share"),
    [
        (None, None),
        (None, 0.4),
        (partial(divergences.jensen_shannon_sum, beta=0.5), None),
        (partial(divergences.adaptive_kl_sum, head_mass=0.5), None),
    ],
)
def test_the_fused_loss_takes_the_kernel_beside_a_teacher(
    divergence: divergences.Divergence | None,
    share: float | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    positions, vocab, width = 12, 70, 16
    labels = torch.arange(positions) % vocab
    teacher = 2 * randn(3, positions, vocab)
    found = []
    for is_available in (False, True):
        monkeypatch.setattr(kernels, "available", lambda _, answer=is_available: answer)
        hidden = randn(0, positions, width).bfloat16().requires_grad_()
        head = Head(randn(1, vocab, width).bfloat16(), None, vocab)
        figures: list[torch.Tensor] = []

        def targets(part: slice, _: Any, add: Any = figures.append) -> TeacherLogits:
            return TeacherLogits(teacher[part], 2.0, add, share)

        objective = Objective(0.5, 2.0, divergence)
        sums = head_and_loss(hidden, head, labels, targets, objective)
        sums.objective.backward()
        assert hidden.grad is not None
        found.append(([*vars(sums).values(), sum(figures)], hidden.grad))
    for one, other in zip(found[0][0], found[1][0], strict=True):
        assert one.item() == pytest.approx(other.item(), rel=5e-3)
    assert relative_error(found[1][1], found[0][1].double()) < 1e-2


@pytest.mark.parametrize("codec", [None, "varopt", "topk"])
@pytest.mark.parametrize("has_bias", [False, True])
def test_the_fused_loss_takes_the_kernel(
    codec: str | None, has_bias: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is left to it is what the operators of torch give, but for rounding."""
    positions, vocab, width = 40, 70, 16
    targets = None if codec is None else targets_of(codec, positions, vocab, 0)
    labels = torch.arange(positions) % vocab
    weights = (labels % 3).float()
    found = []
    for is_available in (False, True):
        monkeypatch.setattr(kernels, "available", lambda _, answer=is_available: answer)
        hidden = randn(0, positions, width).bfloat16().requires_grad_()
        weight = randn(1, vocab + 3, width).bfloat16().requires_grad_()
        bias = randn(2, vocab + 3).bfloat16().requires_grad_() if has_bias else None
        sums = head_and_loss(
            hidden,
            Head(weight, bias, vocab, scale=0.5, softcap=5.0),
            labels,
            None if targets is None else lambda part, _: part_of(targets, part),
            Objective(0.5),
            weights,
        )
        (sums.objective / positions).backward()
        gradients = [each.grad for each in (hidden, weight, bias) if each is not None]
        found.append(([*vars(sums).values()], gradients))
    for one, other in zip(found[0][0], found[1][0], strict=True):
        assert one.item() == pytest.approx(other.item(), rel=2e-3)
    for one, other in zip(found[0][1], found[1][1], strict=True):
        assert one is not None
        assert relative_error(other, one.double()) < 1e-2
