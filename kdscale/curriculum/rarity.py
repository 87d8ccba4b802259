"""Rarity: how seldom the words of a row are, as a difficulty that needs tokens and no model.

Platanios et al., NAACL 2019, sum -log p(w) over a sentence, with p the frequency of w in the
corpus. Here it is the mean over the row's targets, so that it does not measure length again. Rows
are met twice, in chunks of any size: counts first, then scores.
"""

import numpy as np


def count_targets(counts: np.ndarray, labels: np.ndarray, loss_mask: np.ndarray) -> None:
    """Add the targets of rows to `counts` ([V] int64), in place.

    `labels` is [B, T] of integers below V, negative where they are not known; `loss_mask` [B, T]
    bool is True where a label is a target.
    """
    targets = labels[loss_mask]
    counts += np.bincount(targets[targets >= 0], minlength=len(counts))


def row_rarity(counts: np.ndarray, labels: np.ndarray, loss_mask: np.ndarray) -> np.ndarray:
    """[B] float32: mean of -log(count / all counts) over the targets of each row, nats; 0 for a row
    without any. `counts` must have seen the rows."""
    surprise = np.log(max(1, counts.sum())) - np.log(np.maximum(counts, 1))
    mask = loss_mask & (labels >= 0)
    sums = np.where(mask, surprise[np.where(mask, labels, 0)], 0.0).sum(axis=1)
    return (sums / np.maximum(mask.sum(axis=1), 1)).astype(np.float32)
