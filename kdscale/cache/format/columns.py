"""Fixed-width columns of Arrow as numpy arrays and back, without a copy.

Arrow's own `to_numpy` imports pandas for it, a third of a second at every start of a reader.
"""

from typing import Any

import numpy as np
import pyarrow as pa


def as_binary(values: np.ndarray) -> "pa.Array[Any]":
    """[R, N] uint8 -> R fixed-size binaries of N bytes."""
    buffer = pa.py_buffer(np.ascontiguousarray(values).data)
    kind = pa.binary(values.shape[1])
    return pa.FixedSizeBinaryArray.from_buffers(kind, len(values), [None, buffer])


def from_binary(column: "pa.Array[Any]") -> np.ndarray:
    """Invert `as_binary`, without a copy."""
    width = column.type.byte_width
    buffer = column.buffers()[1]
    assert buffer is not None
    count = len(column) * width
    values = np.frombuffer(memoryview(buffer), np.uint8, count, column.offset * width)
    return values.reshape(-1, width)


def as_lists(values: np.ndarray) -> "pa.Array[Any]":
    """[R, T] numbers -> R fixed-size lists of T."""
    return pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1)), values.shape[1])


def from_numbers(column: "pa.Array[Any]") -> np.ndarray:
    """[N] numbers of a primitive column, without a copy. Arrow's own way imports pandas for it."""
    buffer = column.buffers()[1]
    assert buffer is not None
    kind = np.dtype(column.type.to_pandas_dtype())
    return np.frombuffer(memoryview(buffer), kind, len(column), column.offset * kind.itemsize)


def from_lists(column: "pa.Array[Any]") -> np.ndarray:
    """[R, T] numbers of a column of fixed-size lists, without a copy."""
    assert isinstance(column, pa.FixedSizeListArray)
    # `flatten` would import Arrow's compute functions; it minds offsets and nulls, which are none.
    assert column.offset == 0
    return from_numbers(column.values).reshape(len(column), -1)
