"""Opening of a corpus file: decompressed and in UTF-8, by its first bytes and not its name."""

import bz2
import codecs
import gzip
import io
import lzma
import zlib
from collections.abc import Callable
from typing import Any, BinaryIO, Literal, NamedTuple, cast

import pyarrow as pa

from kdscale.errors import KdscaleError
from kdscale.store import Store, open_store

RANGE_BYTES = 8 * 2**20
HEAD_BYTES = 2**20
"""Bytes that decide how a file is read."""

_TEXT_CHARACTERS = 2**18
_MAGIC_BYTES = 512
PARQUET = b"PAR1\x15"
"""A Parquet file's own mark, and the first byte of what follows: a column may be called PAR1."""

DAMAGES = (EOFError, zlib.error, lzma.LZMAError, UnicodeError, pa.ArrowException)
"""Errors of decompression and decoding besides OSError."""

_PACKED: dict[bytes, Callable[[Any], Any]] = {
    b"\x1f\x8b": lambda file: gzip.GzipFile(fileobj=file),
    **{b"BZh%d1AY&SY" % level: bz2.BZ2File for level in range(1, 10)},
    b"\xfd7zXZ\x00": lzma.LZMAFile,
    b"\x28\xb5\x2f\xfd": lambda file: _arrow_stream(file, "zstd"),
    b"\x04\x22\x4d\x18": lambda file: _arrow_stream(file, "lz4"),
}
_BINARY = {
    PARQUET: "a Parquet file",
    b"ARROW1\x00\x00": "an Arrow file",
    b"\xff\xff\xff\xff": "an Arrow stream",
    b"Obj\x01": "an Avro file",
    b"PK\x03\x04": "a zip archive",
    b"7z\xbc\xaf\x27\x1c": "a 7z archive",
    b"SQLite format 3\x00": "an SQLite database",
    b"\x89HDF": "an HDF5 file",
    b"%PDF-": "a PDF",
    b"\x89PNG": "a PNG image",
    b"\xff\xd8\xff": "a JPEG image",
    **dict.fromkeys(_PACKED, "a compressed file"),
}
_LFS_POINTER = b"version https://git-lfs.github.com/spec/"
_PAGES = (b"<!doctype html", b"<html")
# The four bytes of UTF-32 begin with the two of UTF-16.
_WIDE = {
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
# Which of the first bytes are no zeros.
_UNMARKED = {
    b"\1\0\0\0": "utf-32-le",
    b"\0\0\0\1": "utf-32-be",
    b"\1\0\1\0": "utf-16-le",
    b"\0\1\0\1": "utf-16-be",
}


class Opened(NamedTuple):
    """A file from its first byte on, and its first HEAD_BYTES (all of a shorter file)."""

    file: io.BufferedReader
    head: bytes  # HEAD_BYTES, or all of a shorter file

    @property
    def is_whole(self) -> bool:
        """True if the head is the whole file."""
        return len(self.head) < HEAD_BYTES


def open_raw(root: str, key: str) -> BinaryIO:
    """Open the file `key` of the store `root`; a remote one is read in ranges."""
    store = open_store(root)
    path = store.local_path(key)
    if path is not None:
        return path.open("rb")
    return cast(BinaryIO, io.BufferedReader(_RangeFile(store, key), RANGE_BYTES))


def read_head(root: str, key: str) -> bytes:
    """Return the first bytes of the file as stored."""
    with open_raw(root, key) as file:
        return file.read(_MAGIC_BYTES)


def open_unpacked(file: BinaryIO) -> Opened:
    """Open the content of a file of records in UTF-8 without a byte-order mark.

    The file may be compressed (gzip, bzip2, xz, zstd, lz4) and in UTF-8, UTF-16 or UTF-32.
    """
    opened = _looked_at(file)
    for magic, unpack in _PACKED.items():
        if opened.head.startswith(magic):
            opened = _looked_at(unpack(opened.file))
            break
    if what_is(opened.head) is not None:
        return opened
    encoding = _wide_encoding(opened.head)
    if encoding is not None:
        return _looked_at(io.BufferedReader(_Recoded(opened.file, encoding), HEAD_BYTES))
    if opened.head.startswith(codecs.BOM_UTF8):
        size = len(codecs.BOM_UTF8)
        opened.file.read(size)
        return _looked_at(opened.file)
    return opened


def what_is(head: bytes) -> str | None:
    """Name the binary format of a file that begins with `head`; None for text."""
    for magic, what in _BINARY.items():
        if head.startswith(magic):
            return what
    if head[257:262] == b"ustar":
        return "a tar archive"
    if head.startswith(_LFS_POINTER):
        return "a git-lfs pointer in place of the file (`git lfs pull` fetches it)"
    return None


def refuse_others(head: bytes, name: str, wanted: str) -> None:
    """Refuse a file that should hold records and is something else."""
    what = what_is(head)
    if what is None and head.lstrip()[:14].lower().startswith(_PAGES):
        what = "an HTML page"
    if what is not None:
        raise KdscaleError(
            f"{name} is {what}, not {wanted}.",
            "Set the `kind` of the source to what the file is, write it again, or take it out of "
            "the source.",
        )


def read_whole(root: str, key: str) -> bytes | str | None:
    """Return the content of a file that is one document.

    UTF-8 as bytes, UTF-16 and UTF-32 with a mark decoded. None where a compressed file is damaged,
    or holds no text.
    """
    raw = open_store(root).get(key)
    try:
        for magic, unpack in _PACKED.items():
            if raw.startswith(magic):
                raw = unpack(io.BytesIO(raw)).read()
                break
        head = raw[:HEAD_BYTES]
        # A text may begin like a Parquet file; it has no zeros.
        if what_is(head) is not None and (b"\0" in head or head.startswith(_LFS_POINTER)):
            return None
        encoding = _marked_encoding(head)
        return raw if encoding is None else raw.decode(encoding)
    except (*DAMAGES, OSError):
        return None


def _marked_encoding(head: bytes) -> str | None:
    """Return UTF-16 or UTF-32 where the byte-order mark says so."""
    return next((name for mark, name in _WIDE.items() if head.startswith(mark)), None)


def _wide_encoding(head: bytes) -> str | None:
    """Return the same; without a mark where the first two characters are ASCII, as in JSON."""
    zeros = bytes(1 if byte else 0 for byte in head[:4])
    return _marked_encoding(head) or _UNMARKED.get(zeros)


def _looked_at(file: Any) -> Opened:
    whole = file if isinstance(file, io.BufferedReader) else io.BufferedReader(file, HEAD_BYTES)
    head = whole.read(HEAD_BYTES)
    return Opened(io.BufferedReader(_Rewound(head, whole), HEAD_BYTES), head)


def _arrow_stream(file: Any, codec: Literal["zstd", "lz4"]) -> Any:
    return pa.CompressedInputStream(pa.PythonFile(file, mode="r"), codec)


class _Rewound(io.RawIOBase):
    """File whose first bytes were read already."""

    def __init__(self, head: bytes, rest: Any) -> None:
        self._head, self._rest = memoryview(head), rest

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        if not self._head:
            return int(self._rest.readinto(buffer))
        count = min(len(buffer), len(self._head))
        buffer[:count] = self._head[:count]
        self._head = self._head[count:]
        return count


class _Recoded(io.RawIOBase):
    """Text file of another encoding, read as UTF-8."""

    def __init__(self, file: Any, encoding: str) -> None:
        self._text = io.TextIOWrapper(file, encoding=encoding, newline="")
        self._ready = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        if not self._ready:
            self._ready = memoryview(self._text.read(_TEXT_CHARACTERS).encode("utf-8"))
        count = min(len(buffer), len(self._ready))
        buffer[:count] = self._ready[:count]
        self._ready = self._ready[count:]
        return count


class _RangeFile(io.RawIOBase):
    """Object of a store as a file that reads ranges."""

    def __init__(self, store: Store, key: str) -> None:
        self._store, self._key = store, key
        self._size, self._position = store.size(key), 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size}[whence]
        self._position = start + offset
        return self._position

    def readinto(self, buffer: Any) -> int:
        count = max(0, min(len(buffer), self._size - self._position))
        if count:
            buffer[:count] = self._store.get_range(self._key, self._position, count)
            self._position += count
        return count
