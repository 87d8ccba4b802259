"""Numbers of different widths, one after the other without gaps.

`codecs/bits.py` packs columns of one width, as tensors; here every number has its own, and numpy
does it with a running sum and one gather.
"""

import numpy as np

_MOST_BITS = 24
# A number and the shift of up to seven bits before it lie within four bytes.
_BYTES = 4


def join(values: np.ndarray, widths: np.ndarray) -> bytes:
    """[N] int32 numbers, each of as many bits as `widths` [N] says, 0 to 24. Bits count from the
    least significant one of the first byte."""
    offsets = np.cumsum(widths, dtype=np.int64) - widths
    shifted = values.astype(np.int64) << (offsets & 7)
    size = (int(widths.sum()) + 7) // 8
    joined = np.zeros(size + _BYTES)
    for byte in range(_BYTES):
        # Neighbours share a byte but never a bit, so that adding them is joining them.
        part = (shifted >> (8 * byte)) & 0xFF
        joined += np.bincount((offsets >> 3) + byte, part, len(joined))
    return joined[:size].astype(np.uint8).tobytes()


class Reader:
    """The inverse of `join`, part by part."""

    def __init__(self, data: bytes | memoryview) -> None:
        padded = bytes(data) + bytes(_BYTES)
        # The four bytes from every byte on.
        self._windows = np.ndarray(len(padded) - _BYTES + 1, "<u4", padded, strides=(1,))
        self._offset = 0

    def read(self, widths: np.ndarray) -> np.ndarray:
        """The next numbers [N] int32, each of as many bits as `widths` [N] says."""
        ends = np.cumsum(widths, dtype=np.int64)
        ends += self._offset
        starts = ends - widths
        self._offset = int(ends[-1]) if len(ends) else self._offset
        found = np.take(self._windows, starts >> 3)
        found >>= (starts & 7).astype(np.uint32)
        found &= np.take(_MASKS, widths)
        return found.view(np.int32)


class Columns:
    """Columns of numbers of one width, packed row by row as `codecs.bits.pack` does it.

    Each column is shifted to its place in the rows' words of 64 bits, all rows at once.
    """

    def __init__(self, rows: int, columns: int, width: int) -> None:
        self.bytes = (columns * width + 7) // 8
        self._width = width
        self._words = np.zeros((self.bytes // 8 + 1, rows), np.uint64)
        self._bit = 0

    def append(self, numbers: np.ndarray) -> None:
        """The next column, [rows] integers."""
        word, shift = divmod(self._bit, 64)
        values = numbers.astype(np.uint64)
        self._words[word] |= values << np.uint64(shift)
        if shift + self._width > 64:
            self._words[word + 1] |= values >> np.uint64(64 - shift)
        self._bit += self._width

    def packed(self) -> np.ndarray:
        """[rows, bytes] uint8."""
        rows = np.ascontiguousarray(self._words.T).astype("<u8", copy=False)
        return rows.view(np.uint8)[:, : self.bytes]


_MASKS = ((1 << np.arange(_MOST_BITS + 1, dtype=np.uint64)) - 1).astype(np.uint32)
