"""The teacher run again over sequences of a cache, and a check that the cache agrees with it.

All inputs of the teacher are in the cache itself: tokens, segments, masks. Sequences are run one at
a time and cut into chunks, so memory is that of one sequence's logits, however many there are.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from kdscale.cache.codecs import Codec, uniforms
from kdscale.cache.fidelity.gradient import merge
from kdscale.cache.fidelity.measure import CHUNK
from kdscale.cache.rows import CachedRows
from kdscale.cache.spec import Identity
from kdscale.models.forward import row_tensors, target_logits
from kdscale.types import DenseTargets, labels_of


@dataclass(frozen=True)
class RowLogits:
    """One sequence of the cache and the teacher's logits at its n targets."""

    cached: CachedRows  # of one row
    where: Tensor  # [n] int64: the positions that are targets
    logits: Tensor  # [n, V], not divided by the temperature


@dataclass(frozen=True)
class Positions:
    """P targets of any sequences, in order."""

    logits: Tensor  # [P, V]
    noise: Tensor  # [S, P, streams] float64: the uniforms of S seeds
    contexts: Tensor  # [P] int64: the tokens at the positions


@torch.no_grad()
def run_teacher(
    model: torch.nn.Module, rows: CachedRows, vocab_size: int, device: torch.device
) -> Iterator[RowLogits]:
    """Yield one sequence after the other; those without targets are left out."""
    for index in range(len(rows)):
        at = np.array([index])
        row = CachedRows(rows.rows.take(at), rows.payload[at], rows.entropy[at], rows.nll[at])
        batch = row_tensors(row.rows, device)
        where = batch.mask[0].nonzero().squeeze(-1)
        if len(where):
            yield RowLogits(row, where, target_logits(model, batch, vocab_size))


def draw_positions(
    rows: Iterator[RowLogits], seeds: Sequence[int], streams: int
) -> Iterator[Positions]:
    """Yield chunks of CHUNK positions, the last one shorter, with their noise.

    The noise is what a capture under each of `seeds` would draw.
    """
    waiting: list[Positions] = []
    for row in rows:
        waiting.append(_of_row(row, seeds, streams))
        whole = _joined(waiting)
        ready = len(whole.logits) - len(whole.logits) % CHUNK
        for start in range(0, ready, CHUNK):
            yield _part(whole, start, start + CHUNK)
        waiting = [_part(whole, ready, len(whole.logits))]
    if waiting and len(waiting[0].logits):
        yield waiting[0]


def _of_row(row: RowLogits, seeds: Sequence[int], streams: int) -> Positions:
    ids = torch.from_numpy(row.cached.rows.input_ids[0]).to(row.where.device)
    return Positions(
        row.logits,
        torch.stack([_noise(row, seed, streams) for seed in seeds]),
        ids[row.where].long(),
    )


def _noise(row: RowLogits, seed: int, streams: int) -> Tensor:
    """Return the uniforms [n, streams] of the sequence's targets."""
    sample_ids = torch.from_numpy(row.cached.rows.sample_ids).to(row.where.device)
    length = row.cached.rows.input_ids.shape[1]
    return uniforms(seed, sample_ids, length, streams)[0, row.where]


def _joined(parts: list[Positions]) -> Positions:
    return Positions(
        torch.cat([part.logits for part in parts]),
        torch.cat([part.noise for part in parts], dim=1),
        torch.cat([part.contexts for part in parts]),
    )


def _part(whole: Positions, start: int, end: int) -> Positions:
    part = slice(start, end)
    return Positions(whole.logits[part], whole.noise[:, part], whole.contexts[part])


class Proof:
    """Check that a cache is this teacher's, by encoding it again as the capture did.

    On the device and in the dtype of the capture all targets come out the same. On another one
    logits differ by their rounding and a few ids with them, while entropy and loss stay.
    """

    def __init__(self, codec: Codec, identity: Identity) -> None:
        self._codec = codec
        self._temperature = float(identity["temperature"])
        self._seed = int(identity["seed"])
        self._positions = self._differing = 0
        self._shared = self._entropy_gap = self._nll_gap = 0.0

    def check(self, rows: Iterator[RowLogits]) -> Iterator[RowLogits]:
        """Yield the same sequences, and compare each."""
        for row in rows:
            self._compare(row)
            yield row

    def result(self) -> dict[str, float]:
        """Return the comparison's figures.

        positions compared; of them differing (in an id); share of the ids in common; mean distance
        of entropy and of the label's loss, nats.
        """
        count = max(1, self._positions)
        return {
            "positions": self._positions,
            "differing": self._differing,
            "ids_in_common": self._shared / count,
            "entropy_gap": self._entropy_gap / count,
            "nll_gap": self._nll_gap / count,
        }

    def _compare(self, row: RowLogits) -> None:
        noise = _noise(row, self._seed, self._codec.streams)
        found = self._codec.encode(row.logits, noise, temperature=self._temperature)
        payload = torch.from_numpy(row.cached.payload[0]).to(row.where.device)[row.where]
        shared = _shared_ids(self._codec, found.payload, payload)
        count = len(row.where)
        labels = torch.from_numpy(labels_of(row.cached.rows))[0].to(row.where.device)
        labels = labels[row.where].long()
        scaled = row.logits.gather(-1, labels[:, None])[:, 0].float() / self._temperature
        nll = (found.log_norm - scaled).mean().item()
        self._positions += count
        self._differing += int((shared < 1).sum())
        self._shared += shared.sum().item()
        self._entropy_gap += abs(found.entropy.mean().item() - row.cached.entropy.item()) * count
        self._nll_gap += abs(nll - row.cached.nll.item()) * count


def _shared_ids(codec: Codec, found: Tensor, cached: Tensor) -> Tensor:
    """Return the share of ids that two payloads have in common, as multisets: [P].

    For whole distributions, the mass in common.
    """
    mine, theirs = codec.decode(found), codec.decode(cached)
    if isinstance(mine, DenseTargets):
        assert isinstance(theirs, DenseTargets)
        common = torch.minimum(mine.log_probs.exp(), theirs.log_probs.exp()).sum(-1)
        return common.where(common < 1 - 1e-6, 1.0)
    assert not isinstance(theirs, DenseTargets)
    one = torch.ones_like(mine.probs)
    _, surplus, _ = merge(torch.cat([mine.ids, theirs.ids], -1), torch.cat([one, -one], -1))
    return 1 - surplus.abs().sum(-1) / (2 * mine.ids.shape[-1])
