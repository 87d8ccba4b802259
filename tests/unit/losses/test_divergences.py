"""Every divergence against its definition, written out in float64, in value and gradient."""

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kdscale.config.loss import SOURCES, DivergenceConfig, LossConfig, check_defined, status
from kdscale.errors import KdscaleError
from kdscale.losses.divergences import (
    entropy_sum,
    forward_kl_sum,
    make_divergence,
    merged_log_probs,
)
from kdscale.types import DenseTargets, SparseTargets

Naive = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def kl(p: torch.Tensor, q: torch.Tensor) -> torch.Tensor:
    return (p * (p / q).log()).sum(-1)


def adaptive(p: torch.Tensor, q: torch.Tensor) -> torch.Tensor:
    rows = []
    for a, b in zip(p, q, strict=True):
        head, mass = [], 0.0
        for index in a.argsort(descending=True).tolist():
            if mass < 0.5:
                head.append(index)
            mass += float(a[index])
        gap = (a - b).abs().detach()
        share = gap[head].sum() / gap.sum() if gap.sum() > 0 else 0.5
        rows.append(share * kl(a, b) + (1 - share) * kl(b, a))
    return torch.stack(rows)


def centred(p: torch.Tensor) -> torch.Tensor:
    return p.log() - p.log().mean(-1, keepdim=True)


NAIVE: dict[str, tuple[dict[str, float], Naive]] = {
    "forward_kl": ({}, kl),
    "reverse_kl": ({}, lambda p, q: kl(q, p)),
    "jensen_shannon": (
        {"beta": 0.3},
        lambda p, q: 0.3 * kl(p, 0.3 * p + 0.7 * q) + 0.7 * kl(q, 0.3 * p + 0.7 * q),
    ),
    "skewed_kl": ({"alpha": 0.1}, lambda p, q: kl(p, 0.1 * p + 0.9 * q)),
    "skewed_reverse_kl": ({"alpha": 0.2}, lambda p, q: kl(q, 0.2 * q + 0.8 * p)),
    "adaptive_kl": ({"head_mass": 0.5}, adaptive),
    "total_variation": ({}, lambda p, q: 0.5 * (p - q).abs().sum(-1)),
    "logit_mse": ({}, lambda p, q: ((centred(p) - centred(q)) ** 2).mean(-1)),
}


def config_of(kind: str, **options: float) -> DivergenceConfig:
    return LossConfig.model_validate({"divergence": {"kind": kind, **options}}).divergence


def divergence_of(kind: str) -> Naive:
    return make_divergence(config_of(kind, **NAIVE[kind][0])) or forward_kl_sum


def random_logits(seed: int, *shape: int) -> torch.Tensor:
    return 3 * torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("kind", NAIVE)
@settings(deadline=None, max_examples=25)
@given(positions=st.integers(1, 5), vocab=st.integers(2, 40), seed=st.integers(0, 999))
def test_value_and_gradient_are_those_of_the_definition(
    kind: str, positions: int, vocab: int, seed: int
) -> None:
    teacher, student = (
        random_logits(seed, positions, vocab),
        random_logits(-seed - 1, positions, vocab),
    )
    logits = student.clone().requires_grad_()
    found = divergence_of(kind)(teacher.log_softmax(-1), logits.log_softmax(-1))
    found.backward()
    exact = student.double().requires_grad_()
    expected = NAIVE[kind][1](teacher.double().softmax(-1), exact.softmax(-1)).sum()
    expected.backward()
    value, exact_value = float(found.detach()), float(expected.detach())
    assert value == pytest.approx(exact_value, rel=1e-4, abs=1e-5 * positions)
    assert logits.grad is not None
    assert exact.grad is not None
    torch.testing.assert_close(logits.grad.double(), exact.grad, rtol=1e-3, atol=2e-5)


@pytest.mark.parametrize("kind", NAIVE)
def test_equal_distributions_have_none_and_padding_changes_nothing(kind: str) -> None:
    log_p = random_logits(0, 4, 9).log_softmax(-1)
    same = log_p.clone().requires_grad_()
    value = divergence_of(kind)(log_p, same)
    value.backward()
    assert float(value.detach()) == pytest.approx(0, abs=1e-5)
    log_q = random_logits(1, 4, 9).log_softmax(-1)
    padding = torch.full((4, 3), -math.inf)
    padded = torch.cat([log_q, padding], -1).requires_grad_()
    wide = divergence_of(kind)(torch.cat([log_p, padding], -1), padded)
    wide.backward()
    expected = float(divergence_of(kind)(log_p, log_q))
    assert float(wide.detach()) == pytest.approx(expected, rel=1e-5)
    assert padded.grad is not None
    assert padded.grad.isfinite().all()
    assert (padded.grad[:, 9:] == 0).all()


def test_merging_loses_information_of_every_f_divergence() -> None:
    p, q = (random_logits(seed, 6, 20).softmax(-1) for seed in (1, 0))
    probs, ids = p.topk(5)
    log_p = merged_log_probs(SparseTargets(ids, probs, 1 - probs.sum(-1)))
    torch.testing.assert_close(log_p.exp().sum(-1), torch.ones(6))
    listed = q.gather(-1, ids)
    log_q = torch.cat([listed, 1 - listed.sum(-1, keepdim=True)], -1).log()
    for kind in NAIVE:
        if kind not in ("logit_mse", "adaptive_kl"):
            function = divergence_of(kind)
            assert function(log_p, log_q) <= function(p.log(), q.log()) + 1e-5


@pytest.mark.parametrize("kind", NAIVE)
def test_mass_where_the_teacher_has_none_costs_something(kind: str) -> None:
    """Except for squared logits, of which there are none. What cannot be finite counts 87 nats."""
    p = torch.tensor([[0.6, 0.4, 0.0, 0.0]])
    logits = torch.tensor([[0.6, 0.4, 0.1, 0.3]]).log().requires_grad_()
    log_q = logits.log_softmax(-1)
    value = divergence_of(kind)(p.log(), log_q)
    value.backward()
    exact = logits.detach().double().requires_grad_()
    q, floored = exact.softmax(-1), p.double().clamp_min(torch.finfo(torch.float32).tiny)
    naive = NAIVE[kind][1]
    if kind == "logit_mse":
        naive = lambda p, q: NAIVE[kind][1](p[:, :2], q[:, :2])  # noqa: E731
    expected = naive(floored, q).sum()
    expected.backward()
    assert float(value.detach()) == pytest.approx(float(expected.detach()), rel=1e-4)
    assert logits.grad is not None
    assert exact.grad is not None
    torch.testing.assert_close(logits.grad.double(), exact.grad, rtol=1e-3, atol=1e-5)
    assert (logits.grad[0, 2:] > 0).all() or kind == "logit_mse"


@pytest.mark.parametrize("source", SOURCES)
def test_what_a_loss_is_on_the_targets_of_a_source(source: str) -> None:
    sampled = source in ("sample", "varopt")
    for kind in NAIVE:
        undefined = (sampled and kind != "forward_kl") or (source, kind) == ("topk", "logit_mse")
        if undefined:
            with pytest.raises(KdscaleError, match=rf"{kind}.*{source}(.|\n)*Use `forward_kl`"):
                check_defined(kind, source)
        else:
            check_defined(kind, source)
    assert status("forward_kl", "varopt") == "unbiased"
    assert status("reverse_kl", "topk") == "biased"
    assert status("reverse_kl", "online") == "exact"


def test_entropy_of_a_target_is_that_of_its_classes() -> None:
    p = random_logits(0, 5, 9).softmax(-1)
    padded = torch.cat([p.log(), torch.full((5, 2), -math.inf)], -1)
    expected = -(p.double() * p.double().log()).sum()
    assert float(entropy_sum(DenseTargets(padded))) == pytest.approx(float(expected), rel=1e-5)
    probs, ids = p.topk(3)
    rest = 1 - probs.sum(-1)
    merged = torch.cat([probs, rest[:, None]], -1).double()
    found = entropy_sum(SparseTargets(ids, probs, rest))
    assert float(found) == pytest.approx(float(-(merged * merged.log()).sum()), rel=1e-5)
