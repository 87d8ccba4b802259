"""Prior of a cache's ids: which tokens usually follow a token.

Counted from the tokens of the captured rows before the capture starts, stored once with the cache,
and used for nothing but renaming stored ids: an id becomes its rank among the ids that usually
follow the position's token, so that likely ids are small numbers. No teacher is needed for it, and
a poor prior costs bytes, never correctness.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa

from kdscale.cache.format.columns import from_numbers

# A pair that was seen less often does not earn back the two bytes that it takes in the prior.
_LEAST_COUNT = 3
_MOST_PAIRS = 4 << 20
# Enough to know the usual followers of every usual token; more would only take longer to count.
_TOKENS = 64 << 20


@dataclass(frozen=True, eq=False)
class Prior:
    """Ids that follow each id c of V, most frequent first, and all ids in one order."""

    starts: np.ndarray  # [V + 1] int32: the followers of c are followers[starts[c] : starts[c + 1]]
    followers: np.ndarray  # [pairs] int32
    order: np.ndarray  # [V] int32: all ids, most frequent first

    def rank(self, contexts: np.ndarray, ids: np.ndarray) -> np.ndarray:
        """Return the place [P, K] int32 of `ids` [P, K] among the followers of `contexts` [P].

        For an id that is no follower, its place in the order of all, counted on from the
        followers' number.
        """
        known, ranks = self._pairs
        wanted = contexts.astype(np.int64)[:, None] * len(self.order) + ids
        others = self._lengths[contexts][:, None] + self._place[ids]
        if not len(known):
            return others
        found = np.searchsorted(known, wanted)
        found[found == len(known)] = 0
        return np.where(known[found] == wanted, ranks[found], others)

    @cached_property
    def names(self) -> np.ndarray:
        """Return the followers and then `order`, [pairs + V] int32.

        They turn ranks back into ids.

        Under c, rank r is at starts[c] + r, or, where c has n <= r followers, at pairs - n
        + r.
        """
        return np.concatenate([self.followers, self.order])

    @cached_property
    def _lengths(self) -> np.ndarray:
        return np.diff(self.starts)

    @cached_property
    def _place(self) -> np.ndarray:
        """[V] int32: the place of each id in `order`."""
        place = np.empty(len(self.order), np.int32)
        place[self.order] = np.arange(len(self.order), dtype=np.int32)
        return place

    @cached_property
    def _pairs(self) -> tuple[np.ndarray, np.ndarray]:
        """Pairs (c, follower) as numbers c * V + follower, ascending, and the ranks they have."""
        contexts = np.repeat(np.arange(len(self.order), dtype=np.int64), self._lengths)
        ranks = np.arange(len(self.followers)) - self.starts[contexts]
        pairs = contexts * len(self.order) + self.followers
        ascending = np.argsort(pairs)
        return pairs[ascending], ranks[ascending].astype(np.int32)


def counted_rows(rows: int, seq_len: int) -> slice:
    """Return which of `rows` captured rows the prior is counted from.

    All, or every n-th of many.
    """
    return slice(None, None, max(1, rows * seq_len // _TOKENS))


def count_prior(texts: Iterable[tuple[np.ndarray, np.ndarray]], vocab_size: int) -> Prior:
    """Count the prior of `texts`: pairs of [R, T] token ids and [R, T] masks.

    A mask is True at i where token i + 1 is a target (see `kdscale.types`). Memory is that of
    the distinct pairs.
    """
    pairs, counts = np.empty(0, np.int64), np.empty(0, np.int64)
    for ids, mask in texts:
        at = np.flatnonzero(mask[:, :-1])
        here = ids[:, :-1].ravel()[at].astype(np.int64) * vocab_size + ids[:, 1:].ravel()[at]
        pairs, counts = _merged(pairs, counts, *np.unique(here, return_counts=True))
    frequent = np.bincount(pairs % vocab_size, counts, vocab_size)
    # Ids that were hardly seen keep the tokenizer's order, which is close to that of frequency.
    frequent[frequent < _LEAST_COUNT] = 0
    order = np.argsort(-frequent, kind="stable").astype(np.int32)
    kept = counts >= max(_LEAST_COUNT, _threshold(counts))
    contexts, followers = np.divmod(pairs[kept], vocab_size)
    falling = np.lexsort((-counts[kept], contexts))
    starts = np.searchsorted(contexts, np.arange(vocab_size + 1))
    return Prior(starts.astype(np.int32), followers[falling].astype(np.int32), order)


def encode_prior(prior: Prior) -> bytes:
    """Encode as an Arrow IPC file of one row with three lists; equal priors give equal bytes."""
    seen = np.flatnonzero(prior.order[1:] < prior.order[:-1])
    # Behind its last descent the order is that of the ids themselves and need not be stored.
    head = prior.order[: seen[-1] + 1] if len(seen) else prior.order[:0]
    small = np.uint16 if len(prior.order) <= 1 << 16 else np.uint32
    lists = {
        "vocab_size": np.array([len(prior.order)], np.uint32),
        "lengths": np.diff(prior.starts).astype(np.uint32),
        "followers": prior.followers.astype(small),
        "order": head.astype(small),
    }
    columns = {
        name: pa.ListArray.from_arrays(pa.array([0, len(values)], pa.int32()), pa.array(values))
        for name, values in lists.items()
    }
    batch = pa.RecordBatch.from_pydict(columns)
    sink = pa.BufferOutputStream()
    options = pa.ipc.IpcWriteOptions(compression="zstd", use_threads=False)
    with pa.ipc.new_file(sink, batch.schema, options=options) as writer:
        writer.write_batch(batch)
    return sink.getvalue().to_pybytes()


def decode_prior(data: bytes) -> Prior:
    """Invert `encode_prior`."""
    batch = pa.ipc.open_file(pa.py_buffer(data)).get_batch(0)
    vocab_size, lengths, followers, head = (
        _values(batch[name]) for name in ("vocab_size", "lengths", "followers", "order")
    )
    rest = np.ones(vocab_size[0], np.bool_)
    rest[head] = False
    order = np.concatenate([head.astype(np.int32), np.flatnonzero(rest).astype(np.int32)])
    starts = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)]).astype(np.int32)
    return Prior(starts, followers.astype(np.int32), order)


def _values(column: "pa.Array[Any]") -> np.ndarray:
    """Return the values of the one list of a column."""
    assert isinstance(column, pa.ListArray)
    return from_numbers(column.flatten())


def _merged(
    pairs: np.ndarray, counts: np.ndarray, more: np.ndarray, more_counts: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return the sums of two tables of distinct ascending pairs."""
    both, where = np.unique(np.concatenate([pairs, more]), return_inverse=True)
    sums = np.bincount(where, np.concatenate([counts, more_counts]), len(both))
    return both, sums.astype(np.int64)


def _threshold(counts: np.ndarray) -> int:
    """Return the least count that at most `_MOST_PAIRS` pairs reach."""
    if len(counts) <= _MOST_PAIRS:
        return 1
    return int(np.partition(counts, -_MOST_PAIRS)[-_MOST_PAIRS]) + 1
