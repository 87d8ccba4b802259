"""The one pass over the vocabulary that all codecs share.

Softmax is most of an encoder's cost, so it is computed once and everything else is taken from it
while it is in the CPU's cache. The vocabulary is seen as blocks of ids (blocks.py).

Every number of a position comes from reductions over its own row in a fixed order, so it depends
neither on the positions beside it nor on the number of threads.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from kdscale.cache.codecs.blocks import BLOCK, largest

# Takes no probability and, unlike -inf, leaves p * logit a number.
_NOWHERE = torch.finfo(torch.float32).min


@dataclass(frozen=True)
class Distribution:
    """p = softmax(logits) of C positions, in N blocks; ids past V have none of it."""

    logits: Tensor  # [C, N * BLOCK] float32, divided by the temperature
    blocks: Tensor  # [C, N, BLOCK] float32: p; a codec may overwrite it
    maxima: Tensor  # [C, N] float32: the largest p of each block
    entropy: Tensor  # [C] float32, nats
    log_norm: Tensor  # [C] float32: logsumexp; `valid` says whether there is a distribution at all

    def log_probs(self, ids: Tensor) -> Tensor:
        """log p [C, K] float32 of the ids [C, K]; of full precision where p underflows."""
        return self.logits.gather(-1, ids) - self.log_norm[:, None]


class Scratch:
    """Memory that every chunk works in, because fresh pages cost as much as a pass over them."""

    def __init__(self, positions: int, vocab_size: int, device: torch.device) -> None:
        shape = (2, positions, vocab_size + -vocab_size % BLOCK)
        self._tensors = torch.empty(shape, dtype=torch.float32, device=device)

    def take(self, positions: int) -> tuple[Tensor, Tensor]:
        """Two tensors [positions, N * BLOCK] float32, the same ones each time."""
        first, second = self._tensors[:, :positions]
        return first, second


def distribution(logits: Tensor, scratch: Scratch) -> Distribution:
    """Of [C, V] float32 logits; its blocks live in `scratch`."""
    if beyond := -logits.shape[1] % BLOCK:
        logits = torch.nn.functional.pad(logits, (0, beyond), value=_NOWHERE)
    probs, products = scratch.take(len(logits))
    torch.softmax(logits, -1, out=probs)
    blocks = probs.unflatten(-1, (-1, BLOCK))
    maxima = blocks.amax(-1)
    _, top = largest(blocks, maxima, 1)
    # From an id with a large p, because there p is precise.
    log_norm = (logits.gather(-1, top) - probs.gather(-1, top).log()).squeeze(-1)
    entropy = log_norm - _sum(torch.mul(logits, probs, out=products))
    no_number = entropy.isnan()
    if no_number.any():
        # 0 * -inf, which is rare. The logarithms of `entr` would be slow.
        entropy[no_number] = _sum(torch.special.entr(probs[no_number]))
    return Distribution(logits, blocks, maxima, entropy, log_norm)


def valid(log_norm: Tensor) -> Tensor:
    """[P] bool: False where the logits hold NaN or +inf, or nothing but -inf."""
    # Logits of -inf alone leave the mass to the padding of the last block.
    return log_norm > _NOWHERE / 2


def _sum(values: Tensor) -> Tensor:
    """[C, N * BLOCK] float32 -> [C] float32.

    In parts, as torch would share out one long sum among threads and round it otherwise.
    """
    return values.unflatten(-1, (BLOCK, -1)).sum(-1).sum(-1, dtype=torch.float64).float()
