"""Some rows of a cache as a cache of their own: those whose labels are known."""

from dataclasses import fields
from functools import cached_property

import numpy as np

from kdscale.cache.codecs import Codec
from kdscale.cache.read.concat import ConcatReader
from kdscale.cache.read.reader import CacheReader
from kdscale.cache.rows import CachedRows, RowStats
from kdscale.cache.spec import Identity


class SubsetReader:
    """Row i is row `chosen`[i] of `reader`, which keeps its chunks and its metrics."""

    def __init__(self, reader: CacheReader | ConcatReader, chosen: np.ndarray) -> None:
        self._reader = reader
        self._chosen = chosen

    def __len__(self) -> int:
        return len(self._chosen)

    @property
    def codec(self) -> Codec:
        """The cache's own."""
        return self._reader.codec

    @property
    def identity(self) -> Identity:
        """The cache's own."""
        return self._reader.identity

    @property
    def row_bytes(self) -> int:
        """Bytes of a decoded row."""
        return self._reader.row_bytes

    @property
    def seq_len(self) -> int:
        """Positions in a row."""
        return self._reader.seq_len

    @property
    def sequences_per_chunk(self) -> int:
        """Rows that are fetched together: fewer of them are asked for."""
        return self._reader.sequences_per_chunk

    @cached_property
    def statistics(self) -> RowStats:
        """Return the statistics of the chosen rows."""
        stats = self._reader.statistics
        return RowStats(*(getattr(stats, field.name)[self._chosen] for field in fields(RowStats)))

    @property
    def metrics(self) -> dict[str, float]:
        """The cache's own."""
        return self._reader.metrics

    def read(self, indices: np.ndarray) -> CachedRows:
        """See `CacheReader.read`."""
        return self._reader.read(self._chosen[indices])


def known_labels(reader: CacheReader | ConcatReader) -> np.ndarray:
    """[R] bool: the rows whose labels are known, which are those that the teacher was scored on."""
    return ~np.isnan(reader.statistics.nll)
