"""The one pass over the vocabulary that all codecs share.

Softmax is most of an encoder's cost, so it is computed once and everything else is taken from it
while it is in the CPU's cache. The vocabulary is seen as blocks of ids (blocks.py).

On CPUs torch's softmax adds up each lane of a long row in one float32, so that its probabilities
sum to 1 within 4e-4 only where one of 262,144 ids has most of the mass. Their sum over blocks is
exact to 1e-7, and what needs it is divided by it.

Every number of a position comes from reductions over its own row in a fixed order, so it depends
neither on the positions beside it nor on the number of threads.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from kdscale.cache.codecs.vocab_blocks import BLOCK, largest

# Takes no probability and, unlike -inf, leaves p * logit a number.
_NOWHERE = torch.finfo(torch.float32).min


@dataclass(frozen=True)
class Distribution:
    """p = softmax(logits) of C positions, in N blocks; ids from V on are padding and have none."""

    logits: Tensor  # [C, N * BLOCK] float32, divided by the temperature
    blocks: Tensor  # [C, N, BLOCK] float32: p times `mass`; a codec may overwrite it
    sums: Tensor  # [C, N] float32: of `blocks`
    mass: Tensor  # [C, 1] float64: of `sums`, 1 but for the softmax's rounding
    largest: Tensor  # [C, L] int64: the most probable ids, from the most probable down
    entropy: Tensor  # [C] float32, nats
    log_norm: Tensor  # [C] float32: logsumexp; `valid` says whether there is a distribution at all

    def log_probs(self, ids: Tensor) -> Tensor:
        """Return log p [C, K] float32 of the ids [C, K], of full precision where p underflows."""
        return self.logits.gather(-1, ids) - self.log_norm[:, None]


class Scratch:
    """Memory that every chunk works in, because fresh pages cost as much as a pass over them."""

    def __init__(self, positions: int, vocab_size: int, device: torch.device) -> None:
        self._shape = (positions, vocab_size + -vocab_size % BLOCK)
        self._vocab_size = vocab_size
        self._tensors = torch.empty((2, *self._shape), dtype=torch.float32, device=device)
        self._logits: Tensor | None = None

    def take(self, positions: int) -> tuple[Tensor, Tensor]:
        """Two tensors [positions, N * BLOCK] float32, the same ones each time."""
        first, second = self._tensors[:, :positions]
        return first, second

    def padded(self, logits: Tensor, temperature: float) -> Tensor:
        """Return [C, V] logits of any float type, divided, as [C, N * BLOCK] float32.

        The logits themselves, if that is what they are.
        """
        width = self._shape[1]
        if temperature == 1.0 and logits.dtype == torch.float32 and logits.shape[1] == width:
            return logits
        if self._logits is None:
            self._logits = self._tensors.new_empty(self._shape)
            self._logits[:, self._vocab_size :] = _NOWHERE
        # Cast, division and padding in one pass.
        whole = self._logits[: len(logits)]
        own = whole[:, : self._vocab_size].copy_(logits)
        if temperature != 1.0:
            own.div_(temperature)
        return whole


def distribution(
    logits: Tensor, temperature: float, scratch: Scratch, count: int = 1
) -> Distribution:
    """Return the distribution of [C, V] logits of any float type; its blocks live in `scratch`.

    `count`: how many of the most probable ids it lists.
    """
    vocab_size = logits.shape[1]
    logits = scratch.padded(logits, temperature)
    probs, products = scratch.take(len(logits))
    torch.softmax(logits, -1, out=probs)
    blocks = probs.unflatten(-1, (-1, BLOCK))
    sums = blocks.sum(-1)
    mass = sums.sum(-1, keepdim=True, dtype=torch.float64)
    logit_blocks = logits.unflatten(-1, (-1, BLOCK))
    top = largest(logit_blocks, logit_blocks.amax(-1), count, vocab_size)
    # From an id with a large p, because there p is precise.
    first = top[:, :1]
    log_norm = logits.gather(-1, first).double() - (probs.gather(-1, first) / mass).log()
    if logits.is_cuda:
        entropy = entropy_of(probs, mass, products)
    else:
        torch.mul(logits, probs, out=products)
        entropy = log_norm - _sum(products) / mass
        no_number = entropy.isnan()[:, 0]
        if no_number.any():  # 0 * -inf, which is rare
            entropy[no_number] = entropy_of(probs[no_number], mass[no_number])
    entropy, log_norm = (each[:, 0].float() for each in (entropy.clamp(min=0), log_norm))
    return Distribution(logits, blocks, sums, mass, top, entropy, log_norm)


def entropy_of(probs: Tensor, mass: Tensor, terms: Tensor | None = None) -> Tensor:
    """Return the entropy [C, 1] float64, in nats, of `probs` [C, W] float32 that sum to `mass`.

    It takes a logarithm of each, which is slow on a CPU; a GPU waits for memory anyway, and reads
    no logits for it. `terms` [C, W] is memory for them.
    """
    return _sum(torch.special.entr(probs, out=terms)) / mass + mass.log()


def valid(log_norm: Tensor) -> Tensor:
    """[P] bool: False where the logits hold NaN or +inf, or nothing but -inf."""
    # Logits of -inf alone leave the mass to the padding of the last block.
    return log_norm > _NOWHERE / 2


def _sum(values: Tensor) -> Tensor:
    """[C, N * BLOCK] float32 -> [C, 1] float64.

    In parts, as torch would share out one long sum among threads and round it otherwise.
    """
    parts = values.unflatten(-1, (BLOCK, -1)).sum(-1)
    return parts.sum(-1, keepdim=True, dtype=torch.float64)
