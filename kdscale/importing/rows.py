"""Rows of T tokens from imported sequences: cut, packed, and encoded by the codec `topk`.

A document longer than a row becomes windows that share one token, so that every target is in one of
them; the teacher saw more of it than a later window shows. Shorter ones share rows, each a segment.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import torch
import xxhash

from kdscale.cache.codecs.topk import Topk
from kdscale.cache.rows import CachedRows
from kdscale.data.rows.best_fit import BestFit
from kdscale.data.rows.pack import SMALLEST_PIECE, empty_rows, sample_ids
from kdscale.importing.alignment import label_log_probs
from kdscale.importing.checks import Entries
from kdscale.importing.sequence import NO_ID, Sequence

# Where the rest is not known, the values are stored this much higher: the codec scales masses
# above 1 to 1 exactly, so that nothing is left for a ghost.
_ABOVE = 0.02


@dataclass(frozen=True)
class Outline:
    """Tokens of a sequence, and which of its positions have a target: the label is token i + 1."""

    tokens: np.ndarray  # [n] int32
    segments: np.ndarray  # [n] int64, 0 is padding
    scored: np.ndarray  # [n] bool

    @property
    def digest(self) -> bytes:
        """Return xxh3_128 of the content."""
        digest = xxhash.xxh3_128()
        for part in (self.tokens, self.segments, self.scored):
            digest.update(np.ascontiguousarray(part).data)
        return digest.digest()


def outline(sequence: Sequence, about: np.ndarray) -> Outline:
    """Return the outline of a sequence with distributions of the tokens `about`."""
    count = len(sequence.tokens)
    segments = np.ones(count, np.int64) if sequence.segments is None else sequence.segments
    scored = np.zeros(count, bool)
    scored[about - 1] = True
    # A document's first token is no target: its distribution was given another document's tokens.
    scored[:-1] &= (segments[1:] == segments[:-1]) & (segments[1:] > 0)
    if sequence.is_target is not None:
        scored[:-1] &= sequence.is_target[1:]
    return Outline(sequence.tokens.astype(np.int32), segments, scored)


def pieces(found: Outline, seq_len: int) -> Iterator[range]:
    """Yield the positions of each piece that is to be in a row: of one document, with a target."""
    edges = np.flatnonzero(np.diff(found.segments)) + 1
    for first, end in zip([0, *edges], [*edges, len(found.segments)], strict=True):
        if found.segments[first] == 0:
            continue
        for start in range(int(first), max(int(end) - 1, int(first) + 1), seq_len - 1):
            piece = range(start, min(start + seq_len, int(end)))
            if len(piece) >= SMALLEST_PIECE and found.scored[piece.start : piece.stop - 1].any():
                yield piece


@dataclass(frozen=True)
class Encoded:
    """A sequence with what the cache keeps of each of its positions."""

    outline: Outline
    payload: np.ndarray  # [n, bytes a position] uint8; zeros where there is no target
    entropy: np.ndarray  # [n] float32, nats
    nll: np.ndarray  # [n] float32, nats
    bytes_per_target: float


def encode(
    found: Outline, entries: Entries, codec: Topk, text_bytes: int, *, rest_is_known: bool
) -> Encoded:
    """Encode the distributions of a sequence; `text_bytes` are those of its targets.

    Entropy is that of the listed ids and one bucket for the others, a lower bound; the loss of a
    label that is not listed is estimated (see `label_log_probs`).
    """
    count = len(found.tokens)
    where = entries.about - 1
    ids, log_probs = entries.ids[:, : codec.k], entries.log_probs[:, : codec.k]
    probs = np.exp(log_probs)
    mass = probs.sum(1)
    if not rest_is_known:
        log_probs, probs = log_probs - np.log(mass)[:, None], probs / mass[:, None]
        mass = np.ones_like(mass)
    kept = replace(entries, ids=ids, log_probs=log_probs, mass=np.minimum(mass, 1.0))
    entropy, nll = np.zeros((2, count), np.float32)
    rest = np.maximum(1 - mass, 0.0)
    entropy[where] = -(_x_log_x(probs).sum(1) + _x_log_x(rest))
    labels = found.tokens[entries.about]
    nll[where] = -label_log_probs(kept, np.arange(len(where)), labels, codec.vocab_size)[0]
    payload = np.zeros((count, codec.bytes_per_position), np.uint8)
    stored = log_probs if rest_is_known else log_probs + _ABOVE
    payload[where] = codec.pack(
        torch.from_numpy(filled(ids, codec.k, codec.vocab_size)),
        torch.from_numpy(_widened(stored, codec.k)).float(),
    ).numpy()
    payload[~found.scored] = 0
    targets = max(1, int(found.scored.sum()))
    return Encoded(found, payload, entropy, nll, text_bytes / targets)


def filled(ids: np.ndarray, k: int, vocab_size: int) -> np.ndarray:
    """Return [p, k] ids, with the highest unlisted ones in place of NO_ID and behind the end.

    They have the probability 0. High ids are rare tokens and reserved ones, so that hardly any of
    the rest's mass is denied; none stands twice.
    """
    ids = np.pad(ids, ((0, 0), (0, k - ids.shape[1])), constant_values=NO_ID)
    missing = ids < 0
    if not missing.any():
        return ids
    width = min(vocab_size, 2 * k)
    taken = np.zeros((len(ids), width), bool)
    place = vocab_size - 1 - ids
    rows, columns = np.nonzero((place < width) & ~missing)
    taken[rows, place[rows, columns]] = True
    free = np.argsort(taken, axis=1, kind="stable")
    order = np.cumsum(missing, axis=1) - 1
    return np.where(
        missing, vocab_size - 1 - np.take_along_axis(free, np.maximum(order, 0), 1), ids
    )


def _widened(log_probs: np.ndarray, k: int) -> np.ndarray:
    beyond = ((0, 0), (0, k - log_probs.shape[1]))
    return np.pad(log_probs, beyond, constant_values=-np.inf)


def _x_log_x(probs: np.ndarray) -> np.ndarray:
    return probs * np.log(np.maximum(probs, np.finfo(np.float64).tiny))


class _Placed(NamedTuple):
    """A piece of a sequence."""

    sequence: Encoded
    span: range


class RowPacker:
    """Packs encoded sequences into rows; the same sequences give the same rows."""

    def __init__(self, seq_len: int, pad_id: int, *, pack: bool) -> None:
        self._seq_len, self._pad_id, self._pack = seq_len, pad_id, pack
        self._open: BestFit[_Placed] = BestFit(seq_len, SMALLEST_PIECE)

    def add(self, sequence: Encoded) -> Iterator[CachedRows]:
        """Place a sequence; yield the rows that this fills, one at a time."""
        for span in pieces(sequence.outline, self._seq_len):
            placed = _Placed(sequence, span)
            closed = self._open.add(placed, len(span)) if self._pack else iter([[placed]])
            yield from map(self._row, closed)

    def close(self) -> Iterator[CachedRows]:
        """Yield the rows that are not full."""
        yield from map(self._row, self._open.close())

    def _row(self, placed: list[_Placed]) -> CachedRows:
        rows = empty_rows(1, self._seq_len, self._pad_id)
        width = placed[0].sequence.payload.shape[1]
        payload = np.zeros((1, self._seq_len, width), np.uint8)
        entropy, nll = np.zeros((2, self._seq_len))
        start = 0
        for segment, (sequence, span) in enumerate(placed, start=1):
            here, there = slice(start, start + len(span)), slice(span.start, span.stop)
            rows.input_ids[0, here] = sequence.outline.tokens[there]
            rows.segment_ids[0, here] = segment
            rows.loss_mask[0, here] = sequence.outline.scored[there]
            # The label of its last position is outside.
            rows.loss_mask[0, here.stop - 1] = False
            payload[0, here] = sequence.payload[there]
            entropy[here], nll[here] = sequence.entropy[there], sequence.nll[there]
            targets = int(rows.loss_mask[0, here].sum())
            rows.byte_counts[0] += targets * sequence.bytes_per_target
            start = here.stop
        mask = rows.loss_mask[0]
        payload[0, ~mask] = 0
        rows.sample_ids[:] = sample_ids(rows.input_ids, rows.segment_ids, rows.loss_mask)
        means = (np.array([each[mask].mean()], np.float32) for each in (entropy, nll))
        return CachedRows(rows, payload, *means)


class RowCounter:
    """Counts the rows that `RowPacker` gives, from the pieces' lengths alone."""

    def __init__(self, seq_len: int, *, pack: bool) -> None:
        self._pack = pack
        self._open: BestFit[None] = BestFit(seq_len, SMALLEST_PIECE)
        self._closed = 0

    def add(self, length: int) -> None:
        """Count a piece of `length` positions in."""
        self._closed += sum(1 for _ in self._open.add(None, length)) if self._pack else 1

    def total(self) -> int:
        """Return the rows of all pieces; nothing can be added then."""
        return self._closed + sum(1 for _ in self._open.close())
