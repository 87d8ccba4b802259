import math

import numpy as np
import pytest
import torch

from kdscale.cache.fidelity.gradient import Truth
from kdscale.cache.fidelity.measure import Fidelity, Measure
from kdscale.types import DenseTargets, SparseTargets, Targets
from tests.unit.cache.fidelity.naive import dense_target
from tests.unit.cache.fidelity.test_gradient import (
    DRAWS,
    KINDS,
    POSITIONS,
    VOCAB,
    make_logits,
    make_targets,
)

NORMALISED = [kind for kind in KINDS if kind != "unnormalised"]


def make_truth(seed: int = 3, count: int = POSITIONS) -> Truth:
    return Truth(make_logits(seed, count).softmax(-1), make_logits(seed + 50, count).softmax(-1))


def measured(truth: Truth, targets: Targets) -> Fidelity:
    measure = Measure(widths=(POSITIONS,))
    measure.add(truth, targets)
    return measure.result()


def naive_targets(truth: Truth, targets: Targets) -> np.ndarray:
    """[S, P, V]."""
    q = truth.q.double().numpy()
    return np.array(
        [
            [dense_target(targets, draw, at, q[at]) for at in range(POSITIONS)]
            for draw in range(DRAWS)
        ]
    )


@pytest.mark.parametrize("kind", NORMALISED)
def test_bias_and_variance_by_products_of_different_draws(kind: str) -> None:
    truth, targets = make_truth(), make_targets(kind)
    error = naive_targets(truth, targets) - truth.p.double().numpy()
    pairs = [(a, b) for a in range(DRAWS) for b in range(DRAWS) if a != b]
    # Errors of independent draws are independent: the mean of their products is the squared bias.
    bias = np.mean([(error[a] * error[b]).sum(-1) for a, b in pairs], axis=0)
    variance = error.var(0, ddof=1).sum(-1)
    found = measured(truth, targets)
    assert found.squared_bias == pytest.approx(bias.mean(), abs=1e-6)
    assert found.variance == pytest.approx(variance.mean(), rel=1e-5)
    assert found.squared_bias_error == pytest.approx(
        bias.std(ddof=1) / math.sqrt(POSITIONS), rel=1e-4
    )
    assert (found.positions, found.draws) == (POSITIONS, DRAWS)


@pytest.mark.parametrize("kind", NORMALISED)
def test_directions(kind: str) -> None:
    truth, targets = make_truth(), make_targets(kind)
    true = (truth.q - truth.p).double().numpy()
    found = truth.q.double().numpy() - naive_targets(truth, targets)
    single, wide = measured(truth, targets).directions

    def compare(found: np.ndarray, true: np.ndarray) -> tuple[float, float]:
        cosines = (found * true).sum(-1)
        cosines /= np.linalg.norm(found, axis=-1) * np.linalg.norm(true, axis=-1)
        error = ((found - true) ** 2).sum(-1).mean() / (true**2).sum(-1).mean()
        return math.sqrt(error), cosines.mean()

    assert (single.positions, wide.positions) == (1, POSITIONS)
    assert (single.error, single.cosine) == pytest.approx(compare(found, true), rel=1e-5)
    expected = compare(found.mean(1), true.mean(0))
    assert (wide.error, wide.cosine) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("kind", NORMALISED)
def test_loss_kl_mass_and_ids(kind: str) -> None:
    truth, targets = make_truth(), make_targets(kind)
    p, q = truth.p.double().numpy(), truth.q.double().numpy()
    t = naive_targets(truth, targets)
    loss = (-(t - p) * np.log(q)).sum(-1)
    found = measured(truth, targets)
    assert found.loss_bias == pytest.approx(loss.mean(), abs=1e-6)
    assert found.loss_bias_error == pytest.approx(
        loss.mean(0).std(ddof=1) / math.sqrt(POSITIONS), rel=1e-4
    )
    if kind in ("ghost", "dense"):
        assert found.kl == pytest.approx((p * np.log(p / t)).sum(-1).mean(), rel=1e-5)
    else:
        assert found.kl is None
    listed = np.array(
        [[_listed(targets, draw, at) for at in range(POSITIONS)] for draw in range(DRAWS)]
    )
    assert found.kept_mass == pytest.approx((p * listed).sum(-1).mean(), rel=1e-5)
    assert found.distinct_ids == pytest.approx(listed.sum(-1).mean())


def _listed(targets: Targets, draw: int, at: int) -> np.ndarray:
    if isinstance(targets, DenseTargets):
        return np.ones(VOCAB)
    listed = np.zeros(VOCAB)
    listed[targets.ids[draw, at].numpy()] = 1
    return listed


def test_chunks_add_up_and_short_groups_are_left_out() -> None:
    whole, parts = Measure(widths=(4, 8)), Measure(widths=(4, 8, 64))
    truth = make_truth(count=13)
    draws = torch.multinomial(truth.p.repeat(2, 1), 3, True).view(2, 13, 3)
    targets = SparseTargets(draws, torch.full(draws.shape, 1 / 3))
    whole.add(*_part(truth, targets, 0, 4))
    whole.add(*_part(truth, targets, 4, 8))
    for start in range(0, 13, 2):
        parts.add(*_part(truth, targets, start, min(start + 2, 13)))
    assert [d.positions for d in parts.result().directions] == [1, 4, 8]
    assert parts.result().positions == 13
    first = Measure(widths=(4, 8))
    for start in range(0, 8, 2):
        first.add(*_part(truth, targets, start, start + 2))
    assert [d.error for d in first.result().directions] == pytest.approx(
        [d.error for d in whole.result().directions]
    )


def _part(truth: Truth, targets: SparseTargets, start: int, end: int) -> tuple[Truth, Targets]:
    part = slice(start, end)
    return Truth(truth.p[part], truth.q[part]), SparseTargets(
        targets.ids[:, part], targets.probs[:, part]
    )


def test_one_draw_has_bias_alone() -> None:
    truth, many = make_truth(), make_targets("ghost")
    assert isinstance(many, SparseTargets)
    assert many.ghost is not None
    one = SparseTargets(many.ids[:1], many.probs[:1], many.ghost[:1])
    found = measured(truth, one)
    q = truth.q.double().numpy()
    error = np.array([dense_target(one, 0, at, q[at]) for at in range(POSITIONS)])
    expected = ((error - truth.p.double().numpy()) ** 2).sum(-1).mean()
    assert found.squared_bias == pytest.approx(expected, rel=1e-5)
    assert (found.variance, found.draws) == (0, 1)


def test_unbiased_draws_have_no_bias_and_noise_that_falls_with_positions() -> None:
    """N draws from p: the summed variance of c / N is (1 - sum p^2) / N."""
    logits = make_logits(1, 64)
    truth = Truth(logits.softmax(-1), (logits / 2).softmax(-1))
    measure = Measure(widths=(64, 512))
    generator = torch.Generator().manual_seed(0)
    for _ in range(64):
        draws = torch.multinomial(truth.p.repeat(4, 1), 5, True, generator=generator)
        ids = draws.view(4, 64, 5)
        measure.add(truth, SparseTargets(ids, torch.full(ids.shape, 0.2)))
    found = measure.result()
    assert abs(found.squared_bias) < 4 * found.squared_bias_error
    assert abs(found.loss_bias) < 4 * found.loss_bias_error
    assert found.variance == pytest.approx((1 - truth.pp).mean().item() / 5, rel=0.02)
    single, wide, wider = found.directions
    assert single.error > wide.error > wider.error
    assert wider.error / wide.error == pytest.approx(512**-0.5 / 64**-0.5, rel=0.15)
    assert single.cosine < wide.cosine < wider.cosine < 1


def test_no_kl_where_the_target_says_0_of_a_listed_id() -> None:
    truth = make_truth()
    ids = torch.arange(2).expand(1, POSITIONS, 2)
    probs = torch.tensor([0.9, 0.0]).expand(1, POSITIONS, 2)
    ghost = torch.full((1, POSITIONS), 0.1)
    assert measured(truth, SparseTargets(ids, probs, ghost)).kl is None
    positive = SparseTargets(ids, probs.clamp_min(0.01), ghost - 0.01)
    assert measured(truth, positive).kl is not None
