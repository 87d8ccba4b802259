"""Several caches read as one, each with a weight: more corpora, or several teachers, a student.

An epoch of the mixture has its rows cache by cache, and the row and cache of each place are
arithmetic, so nothing grows with the rows. A mixture has the interface of `CacheReader`: orders,
curricula and resume work on it as on one cache.
"""

import json
from collections.abc import Sequence
from dataclasses import fields
from functools import cached_property

import numpy as np

from kdscale.cache.codecs import Codec
from kdscale.cache.format.row_records import empty_records, row_type, view_rows
from kdscale.cache.read.reader import CacheReader
from kdscale.cache.rows import CachedRows, RowStats
from kdscale.cache.spec import Identity, has_labels
from kdscale.errors import KdscaleError

# What one batch of targets must have in common. Teachers and data may differ.
ALIKE = ("task", "codec", "tokenizer", "vocab_size", "seq_len", "temperature")


class ConcatReader:
    """Rows of several caches as rows 0 .. len - 1, of cache i weights[i] times as many as it has.

    A weight of 2 gives every row twice, 0.5 an evenly spread half, 1.5 every row once and such a
    half again. Safe in many threads; picklable, and usable after a fork. KdscaleError where the
    caches differ in what a batch must have in common, or a weight leaves no row.
    """

    def __init__(self, readers: Sequence[CacheReader], weights: Sequence[float]) -> None:
        assert len(readers) == len(weights) >= 1
        check_alike([reader.identity for reader in readers])
        self._readers = tuple(readers)
        self._weights = tuple(weights)
        self._rows = np.array([len(reader) for reader in readers], np.int64)
        self._drawn = np.array(
            [drawn_rows(len(r), weight) for r, weight in zip(readers, weights, strict=True)]
        )
        self._ends = np.cumsum(self._drawn)

    def __len__(self) -> int:
        return int(self._ends[-1])

    @property
    def codec(self) -> Codec:
        """The caches' own."""
        return self._readers[0].codec

    @property
    def identity(self) -> Identity:
        """Return what the caches have in common, and `weights`.

        Fields in which they differ have a list, in the order of the caches.
        """
        each = [reader.identity for reader in self._readers]
        shared: Identity = {}
        for name in dict.fromkeys(name for identity in each for name in identity):
            values = [identity.get(name) for identity in each]
            shared[name] = values[0] if values.count(values[0]) == len(values) else values
        return shared | {"weights": list(self._weights)}

    @property
    def row_bytes(self) -> int:
        """Bytes of a decoded row."""
        return self._readers[0].row_bytes

    @property
    def seq_len(self) -> int:
        """Positions in a row."""
        return int(self._readers[0].identity["seq_len"])

    @property
    def sequences_per_chunk(self) -> int:
        """Rows of the caches' largest chunks."""
        return max(reader.sequences_per_chunk for reader in self._readers)

    @cached_property
    def statistics(self) -> RowStats:
        """Statistics of all rows of the mixture, [R]: 28 bytes a row."""
        parts = [
            (reader.statistics, source_rows(np.arange(drawn), rows, drawn))
            for reader, rows, drawn in zip(self._readers, self._rows, self._drawn, strict=True)
        ]
        names = [field.name for field in fields(RowStats)]
        return RowStats(
            *(np.concatenate([getattr(stats, name)[at] for stats, at in parts]) for name in names)
        )

    @property
    def metrics(self) -> dict[str, float]:
        """Those of the readers, added up."""
        total: dict[str, float] = {}
        for reader in self._readers:
            for name, value in reader.metrics.items():
                total[name] = total.get(name, 0.0) + value
        return total

    def locate(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the cache [B] and the row in it [B] of each of `indices` [B]."""
        caches = np.searchsorted(self._ends, indices, side="right")
        before = indices - (self._ends - self._drawn)[caches]
        return caches, source_rows(before, self._rows[caches], self._drawn[caches])

    def read(self, indices: np.ndarray) -> CachedRows:
        """See `CacheReader.read`."""
        if len(indices) and not 0 <= np.min(indices) <= np.max(indices) < len(self):
            raise IndexError(f"rows {np.min(indices)} .. {np.max(indices)} of {len(self)}")
        caches, rows = self.locate(np.asarray(indices, np.int64))
        labelled = has_labels(self._readers[0].identity)
        kind = row_type(self.seq_len, self.codec.bytes_per_position, labelled)
        records = empty_records(len(indices), kind)
        for cache in np.unique(caches):
            here = caches == cache
            records[here] = self._readers[cache].read(rows[here]).records
        return view_rows(records, kind)


def check_alike(identities: Sequence[Identity]) -> None:
    """KdscaleError with every field in which caches differ that one batch cannot mix."""
    differing = [
        f"  {name}: {', '.join(json.dumps(identity.get(name)) for identity in identities)}"
        for name in ALIKE
        if any(identity.get(name) != identities[0].get(name) for identity in identities)
    ]
    if differing:
        raise KdscaleError(
            "The caches cannot be read as one. In their order they have\n" + "\n".join(differing),
            f"Mix caches of the same {', '.join(ALIKE)}; teachers and data may differ.",
        )


def drawn_rows(rows: int, weight: float) -> int:
    """Rows that a cache of `rows` rows adds to an epoch; KdscaleError where these are none."""
    drawn = round(rows * weight)
    if drawn < 1:
        raise KdscaleError(
            f"A weight of {weight:g} leaves no row of a cache of {rows}.",
            f"Give a weight of at least {1 / rows:.2g}, or leave the cache out.",
        )
    return drawn


def source_rows(places: np.ndarray, rows: np.ndarray | int, drawn: np.ndarray | int) -> np.ndarray:
    """Return the row at each of `places` ([B] int64 in 0 ..

    drawn - 1) of a cache of `rows` rows.

    Whole copies of the cache come one after the other, then the part of one that is left,
    evenly spread: consecutive places stay in few chunks, and the same row comes back late.
    """
    part = np.asarray(drawn % rows)
    after = places - (drawn - part)
    return np.where(after < 0, places % rows, after * rows // np.maximum(part, 1))
