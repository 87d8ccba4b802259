"""The same measures by the definitions, a position at a time over all of V, in float64 numpy."""

import numpy as np

from kdscale.types import DenseTargets, Targets


def dense_target(targets: Targets, draw: int, position: int, q: np.ndarray) -> np.ndarray:
    """[V]: the target of one draw, a ghost's mass spread over the rest as the student has it."""
    if isinstance(targets, DenseTargets):
        return np.exp(targets.log_probs[draw, position].double().numpy())
    t = np.zeros_like(q)
    listed = set()
    for token, prob in zip(
        targets.ids[draw, position].tolist(), targets.probs[draw, position].tolist(), strict=True
    ):
        t[token] += prob
        listed.add(token)
    if targets.ghost is not None:
        rest = np.array([token not in listed for token in range(len(q))])
        t += float(targets.ghost[draw, position]) * q * rest / q[rest].sum()
    return t


def loss_gradient(targets: Targets, draw: int, position: int, logits: np.ndarray) -> np.ndarray:
    """[V]: the derivative of the training loss by the logits, by central differences."""
    step = 1e-5
    found = np.zeros_like(logits)
    for token in range(len(logits)):
        change = np.zeros_like(logits)
        change[token] = step
        above, below = (_loss(targets, draw, position, logits + sign * change) for sign in (1, -1))
        found[token] = (above - below) / (2 * step)
    return found


def _loss(targets: Targets, draw: int, position: int, logits: np.ndarray) -> float:
    """Soft cross-entropy, with the ghost as one more class."""
    log_q = logits - np.log(np.exp(logits).sum())
    if isinstance(targets, DenseTargets):
        return float(-(np.exp(targets.log_probs[draw, position].double().numpy()) * log_q).sum())
    ids = targets.ids[draw, position].tolist()
    loss = -sum(
        prob * log_q[token]
        for token, prob in zip(ids, targets.probs[draw, position].tolist(), strict=True)
    )
    if targets.ghost is not None:
        rest = [token for token in range(len(logits)) if token not in ids]
        loss -= float(targets.ghost[draw, position]) * np.log(np.exp(log_q[rest]).sum())
    return float(loss)
