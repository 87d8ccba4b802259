"""Rarity: how seldom the words of a row are, as a difficulty that needs tokens and no model.

Platanios et al., NAACL 2019, sum -log p(w) over a sentence, with p the frequency of w in the
corpus. Here it is the mean over the row's targets, so that it does not measure length again. Rows
are met twice, in chunks of any size: counts first, then scores.
"""

import numpy as np


def count_targets(counts: np.ndarray, input_ids: np.ndarray, loss_mask: np.ndarray) -> None:
    """Add the target tokens of rows to `counts` ([V] int64), in place.

    `input_ids` is [B, T] of integers below V; `loss_mask` [B, T] bool is True at i where token
    i + 1 is a target.
    """
    targets = input_ids[:, 1:][loss_mask[:, :-1]]
    counts += np.bincount(targets, minlength=len(counts))


def row_rarity(counts: np.ndarray, input_ids: np.ndarray, loss_mask: np.ndarray) -> np.ndarray:
    """[B] float32: mean of -log(count / all counts) over the targets of each row, nats; 0 for a row
    without any. `counts` must have seen the rows."""
    surprise = np.log(max(1, counts.sum())) - np.log(np.maximum(counts, 1))
    mask = loss_mask[:, :-1]
    sums = np.where(mask, surprise[input_ids[:, 1:]], 0.0).sum(axis=1)
    return (sums / np.maximum(mask.sum(axis=1), 1)).astype(np.float32)
