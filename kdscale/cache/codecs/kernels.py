"""Encoders as operators of torch, where there are a GPU, Triton and its compiler."""

from functools import cache
from typing import Any

import torch
from torch import Tensor

from kdscale.cache.codecs.vocab_blocks import BLOCK
from kdscale.utils.triton_runs import triton_runs

MOST_IDS = 128
"""Ids of a position that a kernel takes: it has a block of each at a time."""

MOST_BLOCKS = 1 << 13
"""Blocks of a vocabulary that a kernel takes: it has the sums of all at a time."""


def take(k: int, vocab_size: int, device: str) -> bool:
    """Return whether the kernels encode `k` ids a position of such a vocabulary on a `device`."""
    return k <= MOST_IDS and vocab_size <= MOST_BLOCKS * BLOCK and available(device)


@cache
def available(device: str) -> bool:
    """Return whether the kernels run on a `device` of that type; a warning says why they do not."""

    def trial() -> None:
        logits = torch.zeros(1, 8, dtype=torch.bfloat16, device=device)
        uniforms = torch.zeros(1, 2, dtype=torch.float64, device=device)
        varopt(logits, uniforms, 2, 1, 254, 1.0)

    return triton_runs(device, "The cache is encoded", trial)


# Operators, so that tracers and fake tensors know what the kernels make. Those import Triton.
_VAROPT = """(
    Tensor logits, Tensor uniforms, int k, int head, int steps, float temperature
) -> (Tensor, Tensor, Tensor, Tensor)"""


@torch.library.custom_op("kdscale::varopt", mutates_args=(), schema=_VAROPT)
def varopt(*arguments: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return entropy, log_norm, codes and ids; see `triton_encode.varopt`."""
    from kdscale.cache.codecs import triton_encode

    return triton_encode.varopt(*arguments)


@varopt.register_fake
def _(logits: Tensor, _: Tensor, k: int, head: int, *__: Any) -> tuple[Tensor, ...]:
    entropy = logits.new_empty(len(logits), dtype=torch.float32)
    codes, ids = (logits.new_empty(len(logits), n, dtype=torch.int32) for n in (head, k))
    return entropy, torch.empty_like(entropy), codes, ids
