"""Finding ids in a vocabulary that is seen as blocks, by looking into a few of them only.

All functions take probabilities as [C, N, BLOCK] float32: C positions, N blocks, ids past V at 0.
"""

import torch
from torch import Tensor

BLOCK = 128


def largest(blocks: Tensor, maxima: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The `count` largest probabilities in falling order and their ids, [C, count] each.

    maxima: [C, N], of the blocks. The largest lie in the blocks with the largest maxima: finding
    those reads the vocabulary at the speed of memory, which a top-k over all of it does not.
    """
    chosen = maxima.topk(min(count, maxima.shape[1]), dim=-1).indices
    inside = rows(blocks, chosen).flatten(1).topk(count, dim=-1)
    ids = chosen.gather(-1, inside.indices // BLOCK) * BLOCK + inside.indices % BLOCK
    return inside.values, ids


def running_sums(blocks: Tensor) -> Tensor:
    """[C, N] float64: of each block, the mass up to its end."""
    return blocks.sum(-1).double().cumsum(-1)


def locate(blocks: Tensor, sums: Tensor, points: Tensor) -> Tensor:
    """The ids [C, K] on which `points` [C, K] float64 of the running sum over ids fall.

    sums: `running_sums(blocks)`; points: in [0, sums[:, -1]). An id without mass is never hit,
    unless no id has any.
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
    """Of each position's blocks [C, N, BLOCK] those at `which` [C, K]: [C, K, BLOCK]."""
    return blocks[torch.arange(len(blocks), device=blocks.device)[:, None], which]


def _below(bound: Tensor) -> Tensor:
    """The largest float64 under each `bound` >= 0; 0 under 0."""
    return torch.nextafter(bound, torch.zeros_like(bound))
