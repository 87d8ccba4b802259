import numpy as np
import pytest
import torch

from kdscale.cache.fidelity.gradient import Truth, gradient_error, make_truth, merge
from kdscale.types import DenseTargets, SparseTargets, Targets
from tests.unit.cache.fidelity.naive import loss_gradient

DRAWS, POSITIONS, VOCAB, KEPT = 3, 5, 11, 4


def make_logits(seed: int, count: int = POSITIONS) -> torch.Tensor:
    return torch.randn(count, VOCAB, generator=torch.Generator().manual_seed(seed)) * 2


def make_targets(kind: str, seed: int = 0) -> Targets:
    """Targets of no particular teacher: the measures must hold for any."""
    generator = torch.Generator().manual_seed(seed)
    if kind == "dense":
        logits = torch.randn(DRAWS, POSITIONS, VOCAB, generator=generator)
        return DenseTargets(logits.log_softmax(-1))
    shape = (DRAWS, POSITIONS, KEPT)
    probs = torch.rand(shape, generator=generator)
    if kind == "ghost":
        order = torch.rand(DRAWS, POSITIONS, VOCAB, generator=generator).argsort(-1)
        probs = probs / 5
        return SparseTargets(order[..., :KEPT], probs, 1 - probs.sum(-1))
    ids = torch.randint(VOCAB, shape, generator=generator)
    if kind == "repeated":
        ids[..., 1] = ids[..., 2]
    if kind == "unnormalised":
        return SparseTargets(ids, probs)
    return SparseTargets(ids, probs / probs.sum(-1, keepdim=True))


KINDS = ["plain", "repeated", "unnormalised", "ghost", "dense"]


def naive_errors(truth: Truth, student: torch.Tensor, targets: Targets) -> np.ndarray:
    """[S, P, V] by differentiating the training loss numerically."""
    p, q = truth.p.double().numpy(), truth.q.double().numpy()
    logits = student.double().numpy()
    return np.array(
        [
            [
                loss_gradient(targets, draw, at, logits[at]) - (q[at] - p[at])
                for at in range(POSITIONS)
            ]
            for draw in range(DRAWS)
        ]
    )


@pytest.fixture
def student() -> torch.Tensor:
    return make_logits(7)


@pytest.fixture
def truth(student: torch.Tensor) -> Truth:
    return Truth(make_logits(3).softmax(-1), student.softmax(-1))


@pytest.mark.parametrize("kind", KINDS)
def test_error_is_that_of_the_loss_that_the_student_trains_on(
    kind: str, truth: Truth, student: torch.Tensor
) -> None:
    targets = make_targets(kind)
    expected = naive_errors(truth, student, targets)
    error = gradient_error(truth, targets)
    gradient = (truth.q - truth.p).double().numpy()
    assert error.square().numpy() == pytest.approx((expected**2).sum(-1), rel=1e-5, abs=1e-6)
    assert error.along_gradient().numpy() == pytest.approx((expected * gradient).sum(-1), abs=1e-6)
    assert error.sum().numpy() == pytest.approx(expected.sum(1), abs=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_mean_over_draws(kind: str, truth: Truth, student: torch.Tensor) -> None:
    targets = make_targets(kind)
    expected = naive_errors(truth, student, targets).mean(0)
    mean = gradient_error(truth, targets).mean()
    assert mean.square()[0].numpy() == pytest.approx((expected**2).sum(-1), rel=1e-5, abs=1e-6)
    assert mean.sum()[0].numpy() == pytest.approx(expected.sum(0), abs=1e-6)


def test_moments_of_teacher_and_student(truth: Truth) -> None:
    p, q = truth.p.double().numpy(), truth.q.double().numpy()
    assert truth.pp.numpy() == pytest.approx((p * p).sum(1))
    assert truth.pq.numpy() == pytest.approx((p * q).sum(1))
    assert truth.qq.numpy() == pytest.approx((q * q).sum(1))
    assert truth.p_log_p.numpy() == pytest.approx((p * np.log(p)).sum(1), rel=1e-6)
    assert truth.p_log_q.numpy() == pytest.approx((p * np.log(q)).sum(1), rel=1e-6)
    assert truth.q_log_q.numpy() == pytest.approx((q * np.log(q)).sum(1), rel=1e-6)
    assert truth.p_sum.numpy() == pytest.approx(p.sum(0))
    assert truth.gradient_sum.numpy() == pytest.approx((q - p).sum(0), abs=1e-7)
    assert truth.gradient_square.numpy() == pytest.approx(((q - p) ** 2).sum(1), rel=1e-5)


def test_truth_leaves_out_padding_and_blurs_the_student() -> None:
    logits = make_logits(1)
    logits[:, -2:] = -torch.inf
    truth = make_truth(logits, temperature=2.0)
    kept = logits[:, :-2].double()
    assert torch.allclose(truth.p[:, :-2].double(), (kept / 2).softmax(-1))
    for at in range(POSITIONS):
        # Index -1 is the last position.
        expected = ((kept[at] + kept[at - 1]) / 4).softmax(-1)
        assert torch.allclose(truth.q[at, :-2].double(), expected)
    assert truth.p[:, -2:].abs().max() == truth.q[:, -2:].abs().max() == 0
    assert torch.isfinite(truth.p_log_q).all()
    assert torch.isfinite(truth.q_log_q).all()


def test_merge_adds_up_what_an_id_has() -> None:
    ids = torch.tensor([[5, 2, 5, 9, 2, 5]])
    values = torch.tensor([[1.0, 2.0, 4.0, 8.0, 16.0, 32.0]])
    found, sums, first = merge(ids, values)
    assert found.tolist() == [[2, 2, 5, 5, 5, 9]]
    assert sums.tolist() == [[18, 0, 37, 0, 0, 8]]
    assert first.tolist() == [[True, False, True, False, False, True]]


def test_a_small_tail_of_a_large_vocabulary_is_exact() -> None:
    """Check the bucket's pull on unlisted ids, where torch's softmax errs by more than it."""
    vocab, tail = 262_144, 1e-5
    logits = torch.randn(2, vocab, generator=torch.Generator().manual_seed(0))
    logits[:, 7] = 0
    logits[:, 7] = logits.logsumexp(-1) - np.log(tail)
    # One position is the teacher of the other's student, and both are alike.
    truth = make_truth(logits[:1])
    targets = SparseTargets(torch.tensor([[[7]]]), torch.tensor([[[0.99]]]), torch.tensor([[0.01]]))
    error = gradient_error(truth, targets)
    q = logits[0].double().softmax(-1)
    others = torch.arange(vocab) != 7
    assert error.scale[0, 0].item() == pytest.approx(-0.01 / q[others].sum().item(), rel=0.01)
    total = error.sum()[0]
    # e = (s q - t) - (q - p) = p - t, of which the ids that are not listed have tail - ghost.
    assert total[others].sum().item() == pytest.approx(tail - 0.01, rel=1e-3)
    assert abs(total.sum().item()) < 1e-6
