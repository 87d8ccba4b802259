"""Sequence length on the curriculum's clock: sequences are cut to their first positions.

Short sequences early in training are cheap and steady it (Li, Zhang, He, NeurIPS 2022); cutting
needs no other data. A step then has fewer targets: a run with a schedule sees fewer tokens in all
than one without. Lengths go in multiples, as in DeepSpeed's curriculum, so that kernels are
compiled for few shapes.
"""

from typing import TypeVar

import numpy as np
import torch

from kdscale.config.curriculum import LengthConfig
from kdscale.curriculum.schedule import value_at

ArrayT = TypeVar("ArrayT", np.ndarray, torch.Tensor)


def length_at(config: LengthConfig | None, step: int, steps: int, seq_len: int) -> int:
    """Return the positions to train on at `step` of `steps`.

    The schedule's value rounded down to a multiple, and at most `seq_len`, which need not be one.
    The config keeps it from less than one.
    """
    if config is None:
        return seq_len
    multiples = int(value_at(config.positions, step, steps) // config.multiple)
    return min(seq_len, multiples * config.multiple)


def shorten(length: int, loss_mask: ArrayT, *others: ArrayT) -> list[ArrayT]:
    """Return the first `length` positions of `loss_mask` [B, T] bool and of `others` [B, T, ...].

    The last position that is kept does not count any more: its target is cut off. The arguments
    stay unchanged.
    """
    mask = loss_mask[:, :length]
    if length < loss_mask.shape[1]:
        # A copy, of an array as of a tensor.
        mask = mask & True
        mask[:, -1] = False
    return [mask] + [other[:, :length] for other in others]
