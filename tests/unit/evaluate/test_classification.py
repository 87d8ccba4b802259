"""Classifiers' figures and the intervals of the bootstrap, against loops over the definitions."""

import numpy as np
import pytest
from scipy.stats import binom, binomtest

from kdscale.evaluate.classification import (
    calibration_error,
    classification_intervals,
    classification_metrics,
    fit_temperature,
)
from kdscale.evaluate.intervals import (
    draw_counts,
    gap_interval,
    interval,
    language_model_intervals,
    median_interval,
    wilson_interval,
)
from kdscale.evaluate.metrics import LOSS, TOKENS

C = 4


def scores(rows: int = 300, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    labels = random.choice(C, rows, p=[0.5, 0.3, 0.15, 0.05])
    logits = random.normal(size=(rows, C))
    logits[np.arange(rows), labels] += 1.5
    return logits, labels


def naive(predicted: np.ndarray, labels: np.ndarray) -> dict[str, list[float]]:
    """Precision, recall and f1 of each class, row by row."""
    found: dict[str, list[float]] = {"precision": [], "recall": [], "f1": []}
    for number in range(C):
        hit = sum(1 for p, y in zip(predicted, labels, strict=True) if p == y == number)
        said = sum(1 for p in predicted if p == number)
        there = sum(1 for y in labels if y == number)
        found["precision"].append(hit / said if said else 0.0)
        found["recall"].append(hit / there if there else 0.0)
        found["f1"].append(2 * hit / (said + there) if said + there else 0.0)
    return found


def test_figures_follow_their_definitions() -> None:
    logits, labels = scores()
    predicted = logits.argmax(axis=1)
    got = classification_metrics(logits, labels, temperature=1.0)
    by_class, support = naive(predicted, labels), np.bincount(labels, minlength=C) / len(labels)
    for name, values in by_class.items():
        assert got[f"{name}_macro"] == pytest.approx(np.mean(values))
        assert got[f"{name}_weighted"] == pytest.approx(np.dot(values, support))
        assert got[f"{name}_micro"] == pytest.approx((predicted == labels).mean())
    assert got["accuracy"] == pytest.approx((predicted == labels).mean())
    confusion = np.zeros((C, C), int)
    for label, found in zip(labels, predicted, strict=True):
        confusion[label, found] += 1
    assert got["confusion"] == confusion.tolist()
    pairs = []
    for number in range(C):
        q = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
        ours, others = q[labels == number, number], q[labels != number, number]
        pairs.append((ours[:, None] > others[None]).mean())
    assert got["auroc"] == pytest.approx(np.mean(pairs))


def test_a_class_that_is_never_there_leaves_no_auroc() -> None:
    logits, labels = scores()
    assert classification_metrics(logits, np.minimum(labels, 2), 1.0)["auroc"] is None
    two = classification_metrics(logits[:, :2], np.minimum(labels, 1), 1.0)
    assert 0.5 < two["auroc"] < 1


def test_the_temperature_makes_the_labels_likeliest() -> None:
    logits, labels = scores(2000)
    found = fit_temperature(5 * logits, labels)
    assert found == pytest.approx(5 * fit_temperature(logits, labels), rel=1e-3)

    def loss(temperature: float) -> float:
        q = np.exp(logits / temperature)
        return -np.log(q[np.arange(len(labels)), labels] / q.sum(axis=1)).mean()

    best = fit_temperature(logits, labels)
    assert loss(best) <= min(loss(0.98 * best), loss(1.02 * best))
    assert calibration_error(5 * logits / found, labels) < calibration_error(5 * logits, labels)


def test_intervals_are_those_of_single_draws() -> None:
    logits, labels = scores(120)
    counts = draw_counts(len(labels), seed=3)
    assert (counts.sum(axis=1) == len(labels)).all()
    f1 = []
    for draw in counts.astype(int):
        rows = np.repeat(np.arange(len(labels)), draw)
        predicted = logits[rows].argmax(axis=1)
        f1.append(np.mean(naive(predicted, labels[rows])["f1"]))
    got = classification_intervals(counts, logits, labels)
    assert got["f1_macro"] == pytest.approx(interval(np.array(f1)))
    right = int((logits.argmax(axis=1) == labels).sum())
    assert got["accuracy"] == pytest.approx(textbook(right, len(labels)))


def textbook(right: int, rows: int) -> list[float]:
    return list(binomtest(right, rows).proportion_ci(method="wilson"))


def test_the_interval_of_a_share_is_wilson_s() -> None:
    for right, rows in [(0, 1), (1, 1), (60, 60), (59, 60), (0, 60), (7, 13), (999, 1000)]:
        expected = textbook(right, rows)
        assert wilson_interval(right / rows, rows) == pytest.approx(expected, abs=1e-12)
    assert (wilson_interval(1.0, 60) or [])[1] == 1
    assert (wilson_interval(0.0, 60) or [])[0] == 0
    # n / (n + z^2) of a perfect score.
    assert wilson_interval(1.0, 60) == pytest.approx([60 / (60 + 1.959963984540054**2), 1.0])


@pytest.mark.parametrize(("chance", "rows"), [(0.994, 60), (0.97, 60), (0.9, 100), (0.5, 30)])
def test_the_interval_of_an_accuracy_covers_it(chance: float, rows: int) -> None:
    weights = binom.pmf(np.arange(rows + 1), rows, chance)
    covered = [
        low <= chance <= high
        for low, high in (wilson_interval(k / rows, rows) or (1, 0) for k in range(rows + 1))
    ]
    assert weights @ covered > 0.93


def test_scores_without_an_error_have_no_point_for_an_interval() -> None:
    labels = np.repeat([0, 1, 2], 20)
    counts = draw_counts(60)
    perfect = classification_intervals(counts, np.eye(3)[labels], labels)
    wrong = classification_intervals(counts, np.eye(3)[(labels + 1) % 3], labels)
    assert set(perfect) == {"accuracy", "precision_macro", "recall_macro", "f1_macro"}
    for figure, found in perfect.items():
        assert found == pytest.approx(textbook(60, 60)), figure
        assert wrong[figure] == pytest.approx(textbook(0, 60)), figure
    alike = np.ones((60, 8))
    found = language_model_intervals(counts, alike)
    assert found["agreement_top1"] == found["overlap_top10"] == pytest.approx(textbook(60, 60))
    assert found["loss"] == [1, 1]  # without a bound, so that nothing is known beyond the rows


@pytest.mark.parametrize(
    ("count", "place"), [(1, None), (5, None), (6, 1), (8, 1), (9, 2), (12, 3), (15, 4), (40, 14)]
)
def test_the_interval_of_a_median_is_that_of_its_order_statistics(
    count: int, place: int | None
) -> None:
    # The tables of the sign test (Dixon and Mood, 1946), 5 % two-sided.
    values = np.random.default_rng(0).permutation(np.arange(count, dtype=float))
    found = median_interval(values)
    if place is None:
        assert found is None
    else:
        assert found == [place - 1, count - place]
        assert 2 * binom.cdf(place - 1, count, 0.5) <= 0.05 < 2 * binom.cdf(place, count, 0.5)


def test_the_interval_of_a_mean_is_that_of_the_textbook() -> None:
    random = np.random.default_rng(5)
    by_row = np.zeros((400, 8))
    by_row[:, TOKENS] = 1
    by_row[:, LOSS] = random.normal(2, 1, 400)
    low, high = language_model_intervals(draw_counts(400), by_row)["loss"] or (0, 0)
    mean, half = by_row[:, LOSS].mean(), 1.96 * by_row[:, LOSS].std() / 20
    assert low == pytest.approx(mean - half, abs=0.02)
    assert high == pytest.approx(mean + half, abs=0.02)


def test_the_gap_s_interval_draws_the_same_rows_for_all_models() -> None:
    # Rows differ a hundred times more than models do: drawn apart, the gap would be anything.
    random = np.random.default_rng(6)
    by_row = {}
    base = random.normal(100, 30, 200)
    for name, loss in (("teacher", 0.0), ("student", 0.5), ("baseline", 1.0)):
        by_row[name] = np.zeros((200, 8))
        by_row[name][:, TOKENS] = 1
        by_row[name][:, LOSS] = base + loss + random.normal(0, 0.01, 200)
    found = gap_interval(draw_counts(200), by_row)
    assert found == pytest.approx([0.5, 0.5], abs=0.01)
    assert gap_interval(draw_counts(200), {"teacher": by_row["teacher"]}) is None
    swapped = {**by_row, "baseline": by_row["teacher"]}
    assert gap_interval(draw_counts(200), swapped) is None
