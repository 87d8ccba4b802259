"""Finding ids in a vocabulary that is seen as blocks, by looking into a few of them only.

All functions take numbers of ids as [C, N, BLOCK] float32: C positions, N blocks. Ids from V on are
padding.
"""

import torch
from torch import Tensor

BLOCK = 128


_LEAST = torch.finfo(torch.float32).min


def largest(blocks: Tensor, maxima: Tensor, count: int, vocab_size: int) -> Tensor:
    """Return the ids [C, count] of the `count` <= V largest logits, falling, none of it padding.

    maxima: [C, N], of the blocks. The largest lie in the blocks with the largest maxima:
    finding those reads the vocabulary at the speed of memory, which a top-k over all of it does
    not.
    """
    last = maxima.shape[1] - 1
    chosen = maxima.topk(min(count, last + 1), dim=-1).indices
    inside = rows(blocks, chosen)
    if beyond := -vocab_size % BLOCK:
        # Ids without probability may be among the largest, yet padding loses against them too.
        inside.clamp_min_(_LEAST)
        inside[..., -beyond:].masked_fill_((chosen == last)[..., None], -torch.inf)
    places = inside.flatten(1).topk(count, dim=-1).indices
    return chosen.gather(-1, places // BLOCK) * BLOCK + places % BLOCK


def running_sums(sums: Tensor) -> Tensor:
    """[C, N] float64: of each block, the mass up to its end, from the masses [C, N] of blocks."""
    return sums.double().cumsum(-1)


def locate(blocks: Tensor, sums: Tensor, points: Tensor) -> Tensor:
    """Return the ids [C, K] on which `points` [C, K] float64 of the running sum over ids fall.

    blocks: probabilities, 0 of padding; sums: their running sums; points: in [0, sums[:, -1]).
    An id without mass is never hit, unless no id has any.
    """
    points = points.minimum(_below(sums[:, -1:]))
    hit = torch.searchsorted(sums, points, right=True).clamp(max=sums.shape[-1] - 1)
    before = torch.nn.functional.pad(sums, (1, 0)).gather(-1, hit)
    inside = rows(blocks, hit).double().cumsum(-1)
    # The block's own sum was rounded to float32, so the rest of a point may overshoot its end.
    rest = (points - before)[..., None].minimum(_below(inside[..., -1:]))
    place = torch.searchsorted(inside, rest, right=True).squeeze(-1)
    return hit * BLOCK + place


def rows(blocks: Tensor, which: Tensor) -> Tensor:
    """Return each position's blocks at `which` [C, K] of [C, N, BLOCK]: [C, K, BLOCK]."""
    return blocks[torch.arange(len(blocks), device=blocks.device)[:, None], which]


def _below(bound: Tensor) -> Tensor:
    """Return the largest float64 under each `bound` >= 0; 0 under 0."""
    return torch.nextafter(bound, torch.zeros_like(bound))
