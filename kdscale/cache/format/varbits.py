"""Numbers of different widths, one after the other without gaps.

`codecs/bits.py` packs columns of one width, as tensors; here every number has its own.
"""

import numpy as np

# A number of at most 24 bits and the shift of up to seven bits before it lie within four bytes.
_BYTES = 4


def join(values: np.ndarray, widths: np.ndarray) -> bytes:
    """Join [N] int32 numbers, each of as many bits as `widths` [N] gives, 0 to 24.

    Bits count from the least significant one of the first byte.
    """
    offsets = np.cumsum(widths, dtype=np.int64) - widths
    shifted = values.astype(np.int64) << (offsets & 7)
    size = (int(widths.sum()) + 7) // 8
    joined = np.zeros(size + _BYTES)
    for byte in range(_BYTES):
        # Neighbours share a byte but never a bit, so that adding them is joining them.
        part = (shifted >> (8 * byte)) & 0xFF
        joined += np.bincount((offsets >> 3) + byte, part, len(joined))
    return joined[:size].astype(np.uint8).tobytes()


def windows(stream: bytes | memoryview) -> np.ndarray:
    """Return the four bytes from each byte of `stream` on, [bytes + 1] uint32.

    The number of `width` bits at bit `offset` is (windows[offset >> 3] >> (offset & 7)) & ((1
    << width) - 1).
    """
    padded = bytes(stream) + bytes(_BYTES)
    return np.ndarray(len(stream) + 1, "<u4", padded, strides=(1,))
