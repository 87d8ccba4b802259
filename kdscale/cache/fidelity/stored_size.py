"""The stored size of a codec's payload: packed under a prior, or compressed as a column."""

import numpy as np
import pyarrow as pa

from kdscale.cache.codecs import Codec
from kdscale.cache.format.packing import Packing, packable
from kdscale.cache.format.prior import Prior

_ZSTD = pa.Codec("zstd", 1)  # as the container compresses its columns
_ENOUGH = 8 << 20


class StoredSize:
    """Sum of the stored bytes of one codec's payload.

    What is packed is kept until the end and packed in chunks of `chunk` positions, by default as
    one: a few positions take a little more each than many. What is not packed may be large
    (`full`), and is compressed part by part.
    """

    def __init__(self, codec: Codec, prior: Prior, chunk: int | None = None) -> None:
        self._chunk = chunk
        self._packing = Packing(codec, prior) if packable(codec) else None
        self._contexts: list[np.ndarray] = []
        self._payload: list[np.ndarray] = []
        self._positions = self._stored = 0

    def add(self, contexts: np.ndarray, payload: np.ndarray) -> None:
        """Add positions with the tokens `contexts` [P] and `payload` [P, position bytes] uint8."""
        self._contexts.append(contexts)
        self._payload.append(payload)
        self._positions += len(payload)
        if self._packing is None and sum(part.nbytes for part in self._payload) > _ENOUGH:
            self._store()

    def bytes_per_position(self) -> float:
        """Return the bytes of a position's payload, without tokens, masks and the prior."""
        if self._payload:
            self._store()
        return self._stored / self._positions

    def _store(self) -> None:
        payload, contexts = np.concatenate(self._payload), np.concatenate(self._contexts)
        if self._packing is None:
            self._stored += len(_ZSTD.compress(payload.tobytes(), asbytes=True))
        else:
            size = self._chunk or len(payload)
            for first in range(0, len(payload), size):
                chunk = slice(first, first + size)
                self._stored += len(self._packing.pack(contexts[chunk], payload[chunk]))
        self._contexts, self._payload = [], []
