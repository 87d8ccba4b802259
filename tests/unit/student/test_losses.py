"""Sparse and dense losses against dense float64 references, in value and gradient."""

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest
import torch

from kdscale.student.losses import (
    cross_entropy_sum,
    soft_cross_entropy_sum,
    target_entropy_sum,
)
from kdscale.types import DenseTargets, SparseTargets

shapes = st.tuples(st.integers(1, 6), st.integers(2, 40), st.integers(1, 8), st.integers(0, 2**31))


def reference(
    logits: np.ndarray, dense: np.ndarray, temperature: float
) -> tuple[float, np.ndarray]:
    """Value and gradient of T^2 * sum -t log softmax(logits / T), by the formulas, in float64."""
    scaled = logits.astype(np.float64) / temperature
    shifted = scaled - scaled.max(axis=1, keepdims=True)
    q = np.exp(shifted) / np.exp(shifted).sum(axis=1, keepdims=True)
    value = -(dense * np.log(q)).sum() * temperature**2
    return value, (dense.sum(axis=1, keepdims=True) * q - dense) * temperature


def ghost_reference(
    logits: np.ndarray, ids: np.ndarray, probs: np.ndarray, ghost: np.ndarray
) -> tuple[float, np.ndarray]:
    """The same over K + 1 classes, with the gradient by central differences."""

    def value(x: np.ndarray) -> float:
        total = 0.0
        for row in range(len(x)):
            q = np.exp(x[row] - x[row].max())
            q /= q.sum()
            rest = 1.0
            for i, p in zip(ids[row], probs[row], strict=True):
                total -= p * np.log(q[i])
                rest -= q[i]
            total -= ghost[row] * np.log(rest)
        return total

    x = logits.astype(np.float64)
    gradient = np.zeros_like(x)
    for index in np.ndindex(x.shape):
        step = np.zeros_like(x)
        step[index] = 1e-6
        gradient[index] = (value(x + step) - value(x - step)) / 2e-6
    return value(x), gradient


def with_gradient(logits: np.ndarray, loss: object) -> tuple[float, np.ndarray]:
    tensor = torch.tensor(logits, requires_grad=True)
    value = loss(tensor)  # type: ignore[operator]
    value.backward()
    assert tensor.grad is not None
    return value.item(), tensor.grad.numpy()


@hypothesis.settings(deadline=None, max_examples=50)
@hypothesis.given(shapes, st.sampled_from([1.0, 2.0, 0.7]))
def test_sampled_targets_equal_the_dense_reference(
    shape: tuple[int, int, int, int], temperature: float
) -> None:
    positions, vocab, k, seed = shape
    random = np.random.default_rng(seed)
    logits = random.normal(size=(positions, vocab)).astype(np.float32) * 3
    # With replacement: an id may stand twice, and its weights add up.
    ids = random.integers(vocab, size=(positions, k))
    probs = random.dirichlet(np.ones(k), size=positions).astype(np.float32)
    dense = np.zeros((positions, vocab))
    for row, column in np.ndindex(positions, k):
        dense[row, ids[row, column]] += probs[row, column]
    value, gradient = with_gradient(
        logits,
        lambda x: soft_cross_entropy_sum(
            x, SparseTargets(torch.tensor(ids), torch.tensor(probs)), temperature
        ),
    )
    expected, expected_gradient = reference(logits, dense, temperature)
    # A sum near 0 is the difference of numbers of size 1.
    assert value == pytest.approx(expected, rel=1e-5, abs=1e-6 * positions)
    np.testing.assert_allclose(gradient, expected_gradient, atol=2e-6)


@hypothesis.settings(deadline=None, max_examples=25)
@hypothesis.given(shapes)
def test_ghost_bucket_equals_the_reference_over_k_plus_one_classes(
    shape: tuple[int, int, int, int],
) -> None:
    positions, vocab, k, seed = shape
    k = min(k, vocab - 1)
    random = np.random.default_rng(seed)
    logits = random.normal(size=(positions, vocab)).astype(np.float32)
    ids = np.stack([random.permutation(vocab)[:k] for _ in range(positions)])
    mass = random.dirichlet(np.ones(k + 1), size=positions).astype(np.float32)
    targets = SparseTargets(torch.tensor(ids), torch.tensor(mass[:, :k]), torch.tensor(mass[:, k]))
    value, gradient = with_gradient(logits, lambda x: soft_cross_entropy_sum(x, targets))
    expected, expected_gradient = ghost_reference(logits, ids, mass[:, :k], mass[:, k])
    assert value == pytest.approx(expected, rel=1e-4, abs=1e-6 * positions)
    np.testing.assert_allclose(gradient, expected_gradient, atol=1e-4)


def test_dense_targets_and_padding_ids_without_probability() -> None:
    random = np.random.default_rng(1)
    logits = random.normal(size=(5, 11)).astype(np.float32)
    dense = random.dirichlet(np.ones(11), size=5)
    dense[:, 9:] = 0
    dense /= dense.sum(axis=1, keepdims=True)
    with np.errstate(divide="ignore"):
        targets = DenseTargets(torch.tensor(np.log(dense), dtype=torch.float32))
    value, gradient = with_gradient(logits, lambda x: soft_cross_entropy_sum(x, targets))
    expected, expected_gradient = reference(logits, dense, 1.0)
    assert value == pytest.approx(expected, rel=1e-5)
    np.testing.assert_allclose(gradient, expected_gradient, atol=1e-6)
    entropy = -(dense[:, :9] * np.log(dense[:, :9])).sum()
    assert float(target_entropy_sum(targets)) == pytest.approx(entropy, rel=1e-5)


def test_a_one_hot_target_is_the_cross_entropy_of_the_label() -> None:
    logits = torch.randn(7, 13, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(7)
    one_hot = SparseTargets(labels[:, None], torch.ones(7, 1))
    assert torch.allclose(
        soft_cross_entropy_sum(logits, one_hot), cross_entropy_sum(logits, labels)
    )


def test_a_student_equal_to_its_teacher_has_no_gradient_and_no_kl() -> None:
    logits = np.random.default_rng(0).normal(size=(4, 9)).astype(np.float32)
    targets = DenseTargets(torch.log_softmax(torch.tensor(logits), dim=-1))
    value, gradient = with_gradient(logits, lambda x: soft_cross_entropy_sum(x, targets))
    np.testing.assert_allclose(gradient, 0, atol=1e-6)
    assert value == pytest.approx(float(target_entropy_sum(targets)), rel=1e-5)


def test_wrong_shapes_are_refused() -> None:
    targets = SparseTargets(torch.zeros(4, 2, dtype=torch.int64), torch.zeros(4, 2))
    with pytest.raises(ValueError, match=r"\(3, 5\)"):
        soft_cross_entropy_sum(torch.zeros(3, 5), targets)
    with pytest.raises(ValueError, match="logits have shape"):
        cross_entropy_sum(torch.zeros(3, 5), torch.zeros(4, dtype=torch.int64))
    with pytest.raises(ValueError, match="logits have shape"):
        soft_cross_entropy_sum(torch.zeros(3, 5), DenseTargets(torch.zeros(3, 6)))
