"""From the characters that are answers to the tokens that are."""

from collections.abc import Sequence

import numpy as np


def answer_tokens(text: str, offsets: np.ndarray, spans: Sequence[tuple[int, int]]) -> np.ndarray:
    """[n] bool: whether a token is in an answer.

    `offsets` is [n, 2] of integers, the characters of `text` that each token says it stands for;
    `spans` are the characters of answers. A token that begins before an answer counts where it has
    nothing but blanks of what stands there: it is what the model says first. The first token is
    never one, as nothing predicts it.
    """
    found = np.zeros(len(offsets), bool)
    # Tokens may leave a blank out of their offsets, and those of one character share it.
    ends = np.maximum.accumulate(offsets[:, 1]) if len(offsets) else offsets[:, 1]
    starts = np.minimum(offsets[:, 0], np.concatenate([[0], ends[:-1]]))
    for start, end in spans:
        inside = np.flatnonzero((starts < end) & (ends > start))
        found[inside] = True
        if len(inside) and text[starts[inside[0]] : start].strip():
            found[inside[0]] = False
    found[:1] = False
    return found
