"""Scores of classifiers: scikit-learn's figures, with intervals over documents."""

from typing import Any

import numpy as np
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax
from sklearn import metrics

from kdscale.evaluate.intervals import share_interval, wilson_interval
from kdscale.evaluate.metrics import BINS
from kdscale.evaluate.schema import Interval

AVERAGES = ("macro", "micro", "weighted")

# Logits are divided by something between these.
_TEMPERATURES = (0.05, 20.0)


def classification_metrics(
    logits: np.ndarray, labels: np.ndarray, temperature: float
) -> dict[str, Any]:
    """Return a classifier's figures from logits [R, C] and labels [R].

    Accuracy; precision, recall and f1, each macro, micro and weighted (0 where a class is never
    predicted); mcc; auroc (one class against the others, macro; None where a class has no
    document); confusion [C][C] (label, prediction); and the expected calibration error with logits
    divided by `temperature`.
    """
    classes = np.arange(logits.shape[1])
    predicted = logits.argmax(axis=1)
    found: dict[str, Any] = {
        "accuracy": float(metrics.accuracy_score(labels, predicted)),
        "mcc": float(metrics.matthews_corrcoef(labels, predicted)),
        "auroc": _auroc(logits, labels),
        "confusion": metrics.confusion_matrix(labels, predicted, labels=classes).tolist(),
        "temperature": temperature,
        "ece_scaled": calibration_error(logits / temperature, labels),
    }
    for average in AVERAGES:
        scores = metrics.precision_recall_fscore_support(
            labels, predicted, labels=classes, average=average, zero_division=0.0
        )
        for name, score in zip(("precision", "recall", "f1"), scores[:3], strict=True):
            found[f"{name}_{average}"] = float(score)
    return found


def fit_temperature(logits: np.ndarray, labels: np.ndarray) -> float:
    """Return the divisor of logits [R, C] that makes labels [R] likeliest.

    Temperature scaling: Guo et al., ICML 2017.
    """
    rows = np.arange(len(labels))

    def loss(log_temperature: float) -> float:
        scaled = logits / np.exp(log_temperature)
        return float(-log_softmax(scaled, axis=1)[rows, labels].mean())

    bounds = tuple(np.log(_TEMPERATURES))
    return float(np.exp(minimize_scalar(loss, bounds=bounds, method="bounded").x))


def calibration_error(logits: np.ndarray, labels: np.ndarray) -> float:
    """Return the expected calibration error: bins ((m - 1) / M, m / M], L1, top-1 confidence."""
    log_probs = log_softmax(logits.astype(np.float64), axis=1)
    confidence = np.exp(log_probs.max(axis=1))
    correct = logits.argmax(axis=1) == labels
    at = np.clip(np.ceil(confidence * BINS).astype(int) - 1, 0, BINS - 1)
    gaps = np.bincount(at, confidence - correct, minlength=BINS)
    return float(np.abs(gaps).sum() / len(labels))


def classification_intervals(
    counts: np.ndarray, logits: np.ndarray, labels: np.ndarray
) -> dict[str, Interval]:
    """Return Wilson's interval of accuracy, and bootstrap intervals of the macro figures.

    Of precision, recall and f1 over the draws of `counts` [DRAWS, R].
    """
    rows, accuracy = len(labels), float((logits.argmax(axis=1) == labels).mean())
    classes = logits.shape[1]
    at = labels * classes + logits.argmax(axis=1)
    member = np.zeros((len(labels), classes * classes))
    member[np.arange(len(labels)), at] = 1
    confusion = (counts @ member).reshape(-1, classes, classes)
    right = np.diagonal(confusion, axis1=1, axis2=2)
    precision = _share(right, confusion.sum(axis=1))
    recall = _share(right, confusion.sum(axis=2))
    f1 = _share(2 * right, confusion.sum(axis=1) + confusion.sum(axis=2))
    return {
        "accuracy": wilson_interval(accuracy, rows),
        "precision_macro": share_interval(precision.mean(axis=1), rows),
        "recall_macro": share_interval(recall.mean(axis=1), rows),
        "f1_macro": share_interval(f1.mean(axis=1), rows),
    }


def _share(some: np.ndarray, all_of: np.ndarray) -> np.ndarray:
    """Return some / all_of, 0 where there is none."""
    return np.divide(some, all_of, out=np.zeros_like(some), where=all_of > 0)


def _auroc(logits: np.ndarray, labels: np.ndarray) -> float | None:
    classes = logits.shape[1]
    if len(np.unique(labels)) < classes:
        return None
    probabilities = np.exp(log_softmax(logits.astype(np.float64), axis=1))
    if classes == 2:
        return float(metrics.roc_auc_score(labels, probabilities[:, 1]))
    return float(metrics.roc_auc_score(labels, probabilities, multi_class="ovr"))
