"""One decoded chunk as one file that is used where it lies.

    8 bytes   magic word with the version of this format
    8 bytes   xxh3_64 of everything that follows
    8 bytes   length of the description
    JSON      the key that the chunk is kept under, rows, positions in a row, bytes a position,
              whether rows have labels
    records   the rows as in rowform.py, from a multiple of 64 bytes on

The digest covers the key too, so a file under a wrong name is as bad as a flipped bit. The form is
fixed-width: whatever the store's form costs to decode, it is paid once.
"""

import json
import struct
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import xxhash

from kdscale.cache.format.row_records import FixedRows, row_type, view_rows

_MAGIC = b"KDSBLK\x00\x02"
_HEAD = struct.Struct("<8sQQ")
_DIGEST_END = 16
_ALIGNMENT = 64


@dataclass(frozen=True)
class MappedRows(FixedRows):
    """Rows that are read-only views of a mapped file: the kernel can drop their memory."""


def pack_chunk(key: str, chunk: FixedRows) -> list[bytes | memoryview]:
    """The file of `chunk`, in pieces to be written one after the other; rows are not copied."""
    shape = [len(chunk), *chunk.payload.shape[1:]]
    labelled = chunk.rows.labels is not None
    description = json.dumps({"key": key, "shape": shape, "labels": labelled}).encode()
    length = struct.pack("<Q", len(description))
    padded = description + bytes(-(_HEAD.size + len(description)) % _ALIGNMENT)
    records = chunk.records.view(np.uint8).data
    digest = xxhash.xxh3_64(length + padded)
    digest.update(records)
    return [_MAGIC + struct.pack("<Q", digest.intdigest()) + length + padded, records]


def map_chunk(path: Path, key: str, *, verify: bool) -> MappedRows:
    """The chunk in the file `path`, mapped, not copied.

    ValueError where it is not the whole chunk of `key`. `verify` reads everything and compares the
    digest; without it only the description is read, which is right for a file verified before.
    """
    # Python's own mmap keeps a descriptor open for each mapping; thousands of chunks are mapped.
    with pa.memory_map(str(path)) as file:
        data = memoryview(file.read_buffer())
    if len(data) < _HEAD.size:
        raise ValueError(f"has {len(data)} bytes, which is no chunk")
    magic, digest, description_bytes = _HEAD.unpack_from(data)
    if magic != _MAGIC:
        raise ValueError(f"starts with {magic!r}, not {_MAGIC!r}")
    if verify and (found := xxhash.xxh3_64_intdigest(data[_DIGEST_END:])) != digest:
        raise ValueError(f"has digest {found:016x}, not {digest:016x}")
    end = _HEAD.size + description_bytes
    description = json.loads(bytes(data[_HEAD.size : end]))
    if description["key"] != key:
        raise ValueError(f"is of chunk {description['key']}, not {key}")
    count, seq_len, bytes_per_position = description["shape"]
    kind = row_type(seq_len, bytes_per_position, description["labels"])
    width = np.dtype((np.void, kind.itemsize))
    rows = view_rows(np.frombuffer(data, width, count, end + -end % _ALIGNMENT), kind)
    return MappedRows(rows.rows, rows.payload, rows.entropy, rows.nll, rows.records)
