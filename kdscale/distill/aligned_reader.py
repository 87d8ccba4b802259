"""Cached sequences in the tokens of a student with another tokenizer."""

import threading
from dataclasses import dataclass, replace

import numpy as np

from kdscale.cache.codecs import Codec
from kdscale.cache.read.concat import ConcatReader
from kdscale.cache.read.reader import CacheReader
from kdscale.cache.read.subset import SubsetReader
from kdscale.cache.rows import CachedRows, RowStats
from kdscale.cache.spec import Identity
from kdscale.distill.alignment import Aligner, Coverage

CachedReader = CacheReader | ConcatReader | SubsetReader

# Ids, segments and source of a position, and its loss mask.
_BYTES_A_POSITION = 3 * 4 + 1


@dataclass(frozen=True)
class AlignedCachedRows(CachedRows):
    """Sequences of the student, with the payload that the cache has for each of their positions."""

    has_target: np.ndarray  # [B, T_s] bool: False where the payload is of another position

    def part(self, part: slice) -> "AlignedCachedRows":
        """See CachedRows."""
        whole = super().part(part)
        own = (whole.rows, whole.payload, whole.entropy, whole.nll)
        return AlignedCachedRows(*own, self.has_target[part])


class AlignedReader:
    """Row i is row i of `reader` in the student's tokens; its statistics stay the teacher's.

    Sequences are tokenised when they are read, in the threads that read.
    """

    def __init__(self, reader: CachedReader, aligner: Aligner, seq_len: int) -> None:
        """`seq_len` is that of the aligner's sequences."""
        self.cached = reader
        self.seq_len = seq_len
        self._aligner = aligner
        self._lock = threading.Lock()
        self._coverage: Coverage | None = None
        self._bytes = 0.0

    def __len__(self) -> int:
        return len(self.cached)

    @property
    def codec(self) -> Codec:
        """The cache's own."""
        return self.cached.codec

    @property
    def identity(self) -> Identity:
        """The cache's own."""
        return self.cached.identity

    @property
    def row_bytes(self) -> int:
        """Bytes of a converted row."""
        return self.seq_len * (_BYTES_A_POSITION + self.codec.bytes_per_position)

    @property
    def sequences_per_chunk(self) -> int:
        """The cache's own."""
        return self.cached.sequences_per_chunk

    @property
    def statistics(self) -> RowStats:
        """The cache's own."""
        return self.cached.statistics

    @property
    def metrics(self) -> dict[str, float]:
        """The cache's own."""
        return self.cached.metrics

    @property
    def cut_share(self) -> float:
        """Return the share of the text's bytes read so far that the sequences had no room for."""
        with self._lock:
            cut = 0 if self._coverage is None else self._coverage.cut_bytes
            return cut / (self._bytes + cut) if cut else 0.0

    def read(self, indices: np.ndarray) -> AlignedCachedRows:
        """Return the sequences at `indices` [B], in that order."""
        cached = self.cached.read(indices)
        made = self._aligner.convert(cached.rows)
        with self._lock:
            before = self._coverage
            self._coverage = made.coverage if before is None else before + made.coverage
            self._bytes += float(made.rows.byte_counts.sum())
        has_target = made.source >= 0
        source = np.where(has_target, made.source, 0)
        payload = np.take_along_axis(cached.payload, source[:, :, None], axis=1)
        # Not of records that the reader uses again.
        rows = replace(made.rows, sample_ids=made.rows.sample_ids.copy())
        return AlignedCachedRows(
            rows, payload, cached.entropy.copy(), cached.nll.copy(), has_target
        )


Reader = CachedReader | AlignedReader
