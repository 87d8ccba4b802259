"""The ghost bucket and empty classes: value and gradient, and that the teacher is the minimum."""

import itertools
import math

import pytest
import torch

from kdscale.cache.codecs import make_codec
from kdscale.config.cache import CodecConfig, FullCodec, TopkCodec
from kdscale.config.loss import LossConfig, status
from kdscale.losses.chunk import Objective, chunk_loss
from kdscale.losses.divergences import Divergence, forward_kl_sum, make_divergence
from kdscale.types import DenseTargets, SparseTargets, Targets

DIVERGENCES: dict[str, dict[str, float | str]] = {
    "soft cross-entropy": {"kind": "forward_kl"},
    "reverse KL": {"kind": "reverse_kl"},
    "JSD": {"kind": "jensen_shannon", "beta": 0.5},
    "JSD 0.1": {"kind": "jensen_shannon", "beta": 0.1},
    "skewed KL": {"kind": "skewed_kl", "alpha": 0.1},
    "unskewed KL": {"kind": "skewed_kl", "alpha": 0.0},
    "skewed reverse KL": {"kind": "skewed_reverse_kl", "alpha": 0.1},
    "unskewed reverse KL": {"kind": "skewed_reverse_kl", "alpha": 0.0},
    "adaptive KL": {"kind": "adaptive_kl", "head_mass": 0.5},
    "total variation": {"kind": "total_variation"},
    "squared logits": {"kind": "logit_mse"},
}


def divergence(name: str) -> Divergence | None:
    return make_divergence(LossConfig.model_validate({"divergence": DIVERGENCES[name]}).divergence)


def value_and_gradient(
    logits: torch.Tensor, targets: Targets, objective: Objective
) -> tuple[float, torch.Tensor]:
    gradient = torch.empty_like(logits)
    labels = torch.zeros(len(logits), dtype=torch.int64)
    sums, _ = chunk_loss(logits.clone(), labels, targets, objective, gradient)
    return float(sums[0]), gradient


def exact(
    logits: torch.Tensor, targets: SparseTargets, objective: Objective
) -> tuple[float, torch.Tensor]:
    """Return both by autograd in float64, the bucket's share as a sum over its ids."""
    assert targets.ghost is not None
    z = logits.double().requires_grad_()
    scaled = z / objective.temperature
    listed = scaled.gather(-1, targets.ids)
    others = scaled.scatter(-1, targets.ids, -math.inf).logsumexp(-1, keepdim=True)
    log_q = torch.cat([listed, others], -1).log_softmax(-1)
    p = torch.cat([targets.probs, targets.ghost[:, None]], -1).double()
    if objective.divergence is None:
        distillation = -(p * log_q).sum()
    else:
        distillation = objective.divergence(p.clamp_min(1e-8).log(), log_q)
    w = objective.kd_weight
    value = w * objective.temperature**2 * distillation - (1 - w) * z.log_softmax(-1)[:, 0].sum()
    value.backward()
    assert z.grad is not None
    return float(value.detach()), z.grad


def long_tailed(vocab: int, tail: float, ghost: float) -> tuple[torch.Tensor, SparseTargets]:
    """Return logits of two positions and targets that give the unlisted ids `ghost`.

    The unlisted ids share `tail`, and one listed id has most of the rest. Label 0 is listed.
    """
    generator = torch.Generator().manual_seed(vocab)
    ids = torch.stack([torch.randperm(vocab, generator=generator)[:20] for _ in range(2)])
    ids[:, 5] = 0
    logits = torch.randn(2, vocab, generator=generator, dtype=torch.float64)
    others = logits.scatter(-1, ids, -math.inf).logsumexp(-1, keepdim=True)
    shares = torch.cat([torch.tensor([0.9]), torch.full((19,), 0.1 / 19)]).double()
    listed = (shares * (1 - tail)).log().expand(2, 20)
    logits = logits - others + math.log(tail)
    p = torch.tensor([0.7] + [0.3 / 19] * 19) * (1 - ghost)
    targets = SparseTargets(ids, p.expand(2, 20), torch.full((2,), ghost))
    return logits.scatter(-1, ids, listed).float() - 20, targets


@pytest.mark.parametrize(
    ("vocab", "tail", "temperature"),
    [(262_144, 1e-3, 1.0), (262_144, 1e-5, 1.0), (1000, 1e-5, 1.0), (1000, 1e-12, 2.0)],
)
def test_a_small_tail_of_a_large_vocabulary_is_pulled_as_it_should_be(
    vocab: int, tail: float, temperature: float
) -> None:
    logits, targets = long_tailed(vocab, tail, ghost=0.01)
    logits = temperature * logits
    unlisted = torch.ones_like(logits).scatter(-1, targets.ids, 0.0).bool()
    for name in DIVERGENCES:
        if status(str(DIVERGENCES[name]["kind"]), "topk") == "undefined":
            continue
        objective = Objective(0.5, temperature, divergence(name))
        value, gradient = value_and_gradient(logits, targets, objective)
        expected, reference = exact(logits, targets, objective)
        # Cross-entropy on the labels is as exact as torch's own.
        assert value == pytest.approx(expected, rel=1e-4, abs=1e-3), name
        labels = torch.nn.functional.one_hot(torch.zeros(2, dtype=torch.int64), vocab)
        alone = (logits.double().softmax(-1) - labels) / 2
        pulls = [(each - alone)[unlisted].view(2, -1).sum(-1) for each in (gradient, reference)]
        torch.testing.assert_close(pulls[0], pulls[1], rtol=0.01, atol=2e-7, msg=name)
        torch.testing.assert_close(gradient.double(), reference, rtol=1e-3, atol=2e-4, msg=name)
        apart = Objective(1.0, temperature, objective.divergence)
        _, gradient = value_and_gradient(logits, targets, apart)
        assert gradient.double().sum(-1).abs().max() < 2e-6 * temperature, name


def test_all_ids_are_listed_and_the_bucket_is_empty() -> None:
    logits = torch.randn(4, 7, generator=torch.Generator().manual_seed(0))
    probs, ids = logits.flip(0).softmax(-1).topk(7)
    for name, ghost in itertools.product(DIVERGENCES, (0.0, 1e-3)):
        if name == "squared logits":
            continue
        targets = SparseTargets(ids, probs * (1 - ghost), torch.full((4,), ghost))
        objective = Objective(1.0, 1.0, divergence(name))
        _, gradient = value_and_gradient(logits, targets, objective)
        whole = DenseTargets((probs * (1 - ghost)).log().gather(-1, ids.argsort(-1)))
        _, expected = value_and_gradient(logits, whole, objective)
        # To the empty bucket nothing can be given, and it may be asked for.
        torch.testing.assert_close(gradient, expected, rtol=1e-2, atol=2e-3, msg=name)


def peaked(vocab: int) -> torch.Tensor:
    """Return positions with a top id of 0.5 to 0.9999 and a tail that rounds to nothing."""
    generator = torch.Generator().manual_seed(vocab)
    logits = 1.5 * torch.randn(200, vocab, generator=generator)
    others = logits.scatter(-1, torch.full((200, 1), 3), -math.inf).logsumexp(-1)
    logits[:, 3] = others + torch.linspace(0, 9, 200)
    return logits


def impossible(vocab: int) -> torch.Tensor:
    """Return the same, but half of the ids without probability."""
    return peaked(vocab).index_fill(-1, torch.arange(4, vocab, 2), -math.inf)


CODECS: list[CodecConfig] = [TopkCodec(k=62, value_bits=8), TopkCodec(k=62), FullCodec()]


@pytest.mark.parametrize("config", CODECS, ids=str)
@pytest.mark.parametrize("name", DIVERGENCES)
@pytest.mark.parametrize("teacher", [peaked, impossible])
def test_who_starts_at_the_teacher_stays_there(
    config: CodecConfig, name: str, teacher: object
) -> None:
    if status(str(DIVERGENCES[name]["kind"]), config.kind) == "undefined":
        return
    logits = teacher(64)  # type: ignore[operator]  # one of the two above
    codec = make_codec(config, 64)
    noise = torch.empty(len(logits), 0, dtype=torch.float64)
    targets = codec.decode(codec.encode(logits, noise).payload)
    if isinstance(targets, SparseTargets):
        assert targets.ghost is not None
        assert (torch.cat([targets.probs, targets.ghost[:, None]], -1) == 0).any()
    p = logits.softmax(-1)
    # Where the teacher has no logit, its student has a small one.
    student = logits.clamp_min(-12.0).requires_grad_()
    optimiser = torch.optim.Adam([student], lr=0.05)
    values = []
    for _ in range(100):
        value, student.grad = value_and_gradient(
            student.detach(), targets, Objective(1.0, 1.0, divergence(name))
        )
        values.append(value)
        optimiser.step()
    q = student.detach().softmax(-1)
    distance = 0.5 * (p - q).abs().sum(-1)
    # 8 bits round a probability by 3%.
    assert distance.max() < (0.04 if getattr(config, "value_bits", 16) == 8 else 0.01), distance
    if name != "soft cross-entropy":
        assert min(values) > -1e-4 * len(logits)


def test_forward_kl_needs_what_the_student_lacks() -> None:
    """Also by autograd, where the student's share is 0 in float32."""
    log_p = torch.tensor([[0.5, 0.5]]).log()
    log_q = torch.tensor([[0.0, -math.inf]])
    assert float(forward_kl_sum(log_p, log_q)) == pytest.approx(43.7 - math.log(2), abs=0.1)
