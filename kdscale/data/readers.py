"""The documents of one piece of a corpus, as bytes or text that is not cleaned yet.

A piece is what one task reads at a time: a file, or a range of rows of a Hugging Face data set.

Files are read through the store in ranges, so that a piece may be larger than memory. A record's
name is its file and its number in it: it stays the same when records are appended.
"""

import gzip
import io
import json
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, BinaryIO, Literal, cast

import pyarrow as pa

from kdscale.config.data import SourceConfig
from kdscale.errors import KdscaleError
from kdscale.store import Store, open_store

RANGE_BYTES = 8 * 2**20
BATCH_RECORDS = 256


@dataclass(frozen=True)
class Piece:
    """A file (`key` in the store `root`), or rows `start` to `stop` of the data set `root`.

    `name` begins the name of each document in it.
    """

    reader: Literal["file", "metadata", "jsonl", "parquet", "huggingface"]
    name: str
    root: str
    key: str = ""
    start: int = 0
    stop: int = 0


Document = tuple[str, bytes | str | None]


def read_piece(piece: Piece, source: SourceConfig) -> Iterator[Document]:
    """(name, content) of each document; the content is None where the container is damaged there.

    Raises KdscaleError where a record has no `text_field` that holds text, or a container cannot be
    read to its end.
    """
    try:
        yield from _documents(piece, source)
    except (EOFError, gzip.BadGzipFile, zlib.error, pa.ArrowInvalid) as error:
        raise KdscaleError(
            f"{piece.name} is damaged or not a {piece.reader} file: {error}",
            "Write the file again, or take it out of the source.",
        ) from error


def _documents(piece: Piece, source: SourceConfig) -> Iterator[Document]:
    if piece.reader == "huggingface":
        yield from _read_hub_rows(piece, source)
    elif piece.reader == "jsonl":
        yield from _read_json_lines(piece, source.text_field)
    elif piece.reader == "parquet":
        yield from _read_parquet(piece, source.text_field)
    else:
        raw = open_store(piece.root).get(piece.key)
        yield piece.name, raw if piece.reader == "file" else long_description(raw)


def long_description(metadata: bytes) -> bytes:
    """The body of a distribution's METADATA: what follows the first empty line."""
    return metadata.replace(b"\r\n", b"\n").partition(b"\n\n")[2]


@lru_cache(maxsize=4)
def load_hub_dataset(name: str, subset: str | None, split: str | None) -> Any:
    """A Hugging Face data set's split, memory-mapped; its builder where `split` is None.

    Raises KdscaleError where it cannot be had.
    """
    import datasets

    try:
        if split is None:
            return datasets.load_dataset_builder(name, subset)
        return datasets.load_dataset(name, subset, split=split)
    except Exception as error:  # the library raises its own, httpx's, fsspec's and plain ones
        raise KdscaleError(
            f"The data set {name!r} (subset {subset!r}, split {split!r}) cannot be loaded: {error}",
            "Check its name, subset and split, the network, and HF_TOKEN if it is gated.",
        ) from error


def _read_hub_rows(piece: Piece, source: SourceConfig) -> Iterator[Document]:
    data = load_hub_dataset(piece.root, source.subset, source.split)
    _require_field(source.text_field, data.column_names, piece.name)
    for row in range(piece.start, piece.stop):
        name = f"{piece.name}#{row}"
        yield name, _text(data[row][source.text_field], source.text_field, name)


def _read_json_lines(piece: Piece, text_field: str) -> Iterator[Document]:
    with _open_file(piece) as file:
        lines = gzip.GzipFile(fileobj=file) if piece.key.lower().endswith(".gz") else file
        for number, line in enumerate(lines):
            if not line.strip():
                continue
            name = f"{piece.name}#{number}"
            try:
                record = json.loads(line)
            except ValueError:
                yield name, None
                continue
            _require_field(text_field, list(record) if isinstance(record, dict) else [], name)
            yield name, _text(record[text_field], text_field, name)


def _read_parquet(piece: Piece, text_field: str) -> Iterator[Document]:
    import pyarrow.parquet as pq

    with _open_file(piece) as file:
        table = pq.ParquetFile(file)
        _require_field(text_field, table.schema_arrow.names, piece.name)
        number = 0
        for batch in table.iter_batches(BATCH_RECORDS, columns=[text_field]):
            for value in batch[0].to_pylist():
                name = f"{piece.name}#{number}"
                yield name, _text(value, text_field, name)
                number += 1


def _require_field(text_field: str, fields: list[str], where: str) -> None:
    if text_field not in fields:
        raise KdscaleError(
            f"{where} has no field {text_field!r}, only {', '.join(sorted(fields)) or 'none'}.",
            "Set `text_field` of the source to the field that holds the text.",
        )


def _text(value: Any, text_field: str, where: str) -> bytes | str:
    """A record's value as text; null is an empty document."""
    if value is None:
        return ""
    if not isinstance(value, str | bytes):
        raise KdscaleError(
            f"The field {text_field!r} of {where} holds {type(value).__name__}, not text.",
            "Set `text_field` of the source to the field that holds the text.",
        )
    return value


def _open_file(piece: Piece) -> BinaryIO:
    store = open_store(piece.root)
    path = store.local_path(piece.key)
    if path is not None:
        return path.open("rb")
    return cast(BinaryIO, io.BufferedReader(_RangeFile(store, piece.key), RANGE_BYTES))


class _RangeFile(io.RawIOBase):
    """An object of a store as a file that reads ranges."""

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
