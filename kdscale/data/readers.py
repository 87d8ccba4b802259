"""The documents of one piece of a corpus, as bytes or text that is not cleaned yet.

A piece is what one task reads at a time: a file, or a range of rows of a Hugging Face data set.

Files are read through the store in ranges, so that a piece may be larger than memory. A record's
name is its file and its number in it: it stays the same when records are appended.
"""

import csv
import gzip
import hashlib
import io
import json
import zlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import PurePosixPath
from typing import Any, BinaryIO, Literal, NamedTuple, cast

import pyarrow as pa

from kdscale.config.chat import ChatConfig
from kdscale.config.data import SourceConfig
from kdscale.data.messages import read_conversation
from kdscale.errors import KdscaleError
from kdscale.scratch import machine_folder
from kdscale.store import Store, download_folder, open_store

RANGE_BYTES = 8 * 2**20
BATCH_RECORDS = 256
_DAMAGED = (
    *(EOFError, gzip.BadGzipFile, zlib.error),
    *(pa.ArrowInvalid, csv.Error, json.JSONDecodeError),
)
# Python's own limit is shorter than many a document.
_CSV_FIELD_BYTES = 2**30


@dataclass(frozen=True)
class Piece:
    """A file (`key` in the store `root`), or rows `start` to `stop` of the data set `root`.

    `name` begins the name of each document in it, `source` is the number of its source in a
    mixture.
    """

    reader: Literal["file", "metadata", "jsonl", "csv", "parquet", "huggingface"]
    name: str
    root: str
    key: str = ""
    start: int = 0
    stop: int = 0
    source: int = 0


class Document(NamedTuple):
    """A document as its container has it; the content of a conversation as `messages` writes it."""

    name: str
    content: bytes | str | None  # None where the container is damaged there
    label: str | None = None  # None where it has none


def read_piece(
    piece: Piece,
    source: SourceConfig,
    label_field: str | None = None,
    chat: ChatConfig | None = None,
) -> Iterator[Document]:
    """The documents, with their labels where these are in a `label_field`; conversations where the
    config says so.

    Raises KdscaleError where a record has no `text_field` that holds text, no such conversation or
    no such label, or a container cannot be read to its end.
    """
    try:
        yield from _documents(piece, Fields(source.text_field, label_field, chat), source)
    except _DAMAGED as error:
        raise KdscaleError(
            f"{piece.name} is damaged or not a {piece.reader} file: {error}",
            "Write the file again, or take it out of the source.",
        ) from error


class Fields(NamedTuple):
    """What is taken of a record."""

    text: str
    label: str | None
    chat: ChatConfig | None = None

    @property
    def names(self) -> list[str]:
        """The columns to read."""
        return [name for name, _ in self._options]

    @property
    def _options(self) -> list[tuple[str, str]]:
        """The columns, each with where the config names it."""
        found = [(self.text, "`text_field` of the source")]
        if self.chat is not None:
            found = [(name, "data.chat") for name in self.chat.columns]
        return found if self.label is None else [*found, (self.label, _LABEL)]

    def require(self, have: Iterable[str], where: str) -> None:
        """KdscaleError where a record or a table has not got them."""
        known = list(have)
        for name, option in self._options:
            if name not in known:
                raise KdscaleError(
                    f"{where} has no field {name!r}, only {', '.join(sorted(known)) or 'none'}.",
                    f"Set {option} to the field that holds it.",
                )

    def document(self, record: Mapping[str, Any], name: str) -> Document:
        """What a record says; null is an empty document, or no label."""
        label = None if self.label is None else record[self.label]
        if label is not None and not isinstance(label, str | int):
            raise KdscaleError(
                f"The field {self.label!r} of {name} holds {type(label).__name__}, not a class.",
                f"Set {_LABEL} to the field that holds a class's name or number.",
            )
        return Document(name, self._content(record, name), None if label is None else str(label))

    def _content(self, record: Mapping[str, Any], name: str) -> str | bytes | None:
        if self.chat is not None:
            return read_conversation(record, self.chat, name)
        text = record[self.text]
        if text is not None and not isinstance(text, str | bytes):
            raise KdscaleError(
                f"The field {self.text!r} of {name} holds {type(text).__name__}, not text.",
                "Set `text_field` of the source to the field that holds the text.",
            )
        return "" if text is None else text


_LABEL = "data.labels.field"


def _documents(piece: Piece, fields: Fields, source: SourceConfig) -> Iterator[Document]:
    if piece.reader == "huggingface":
        yield from _read_hub_rows(piece, fields, source)
    elif piece.reader in _READERS:
        yield from _READERS[piece.reader](piece, fields)
    else:
        raw = open_store(piece.root).get(piece.key)
        content = raw if piece.reader == "file" else long_description(raw)
        yield Document(piece.name, content, PurePosixPath(piece.key).parent.name or None)


def long_description(metadata: bytes) -> bytes:
    """The body of a distribution's METADATA: what follows the first empty line."""
    return metadata.replace(b"\r\n", b"\n").partition(b"\n\n")[2]


def is_saved_dataset(name: str) -> bool:
    """Whether a Hugging Face data set is a folder or URL that `save_to_disk` wrote."""
    store = open_store(name)
    return store.exists("state.json") or store.exists("dataset_dict.json")


@lru_cache(maxsize=4)
def load_hub_dataset(name: str, subset: str | None, split: str | None) -> Any:
    """A Hugging Face data set's split, memory-mapped; its builder where `split` is None.

    Raises KdscaleError where it cannot be had.
    """
    import datasets

    saved = _saved_folder(name) if is_saved_dataset(name) else None
    if saved is None and "://" in name:
        raise KdscaleError(
            f"There is no data set at {open_store(name)}: it has neither state.json nor "
            "dataset_dict.json.",
            "Give the URL of a folder that save_to_disk wrote, or a hub's name.",
        )
    try:
        if saved is not None:
            found = datasets.load_from_disk(saved)
            return found[split] if isinstance(found, datasets.DatasetDict) else found
        if split is None:
            return datasets.load_dataset_builder(name, subset)
        return datasets.load_dataset(name, subset, split=split)
    except Exception as error:  # the library raises its own, httpx's, fsspec's and plain ones
        raise KdscaleError(
            f"The data set {name!r} (subset {subset!r}, split {split!r}) cannot be loaded: {error}",
            "Check its name, subset and split, the network, and HF_TOKEN if it is gated.",
        ) from error


def _saved_folder(name: str) -> str:
    """The folder of a saved data set on this machine, fetched if it is remote."""
    store = open_store(name)
    here = store.local_path()
    if here is not None:
        return str(here)
    listed = repr([(entry.key, entry.size, entry.modified) for entry in store.entries()])
    copy = hashlib.sha256(f"{store.url}\0{listed}".encode()).hexdigest()[:16]
    parent, _, last = store.url.rpartition("/")
    return str(download_folder(open_store(parent), last, machine_folder("datasets") / copy))


def _read_hub_rows(piece: Piece, fields: Fields, source: SourceConfig) -> Iterator[Document]:
    data = load_hub_dataset(piece.root, source.subset, source.split)
    fields.require(data.column_names, piece.name)
    # Classes that a data set numbers have their names in its features.
    names = getattr(data.features[fields.label], "names", None) if fields.label else None
    for row in range(piece.start, piece.stop):
        found = fields.document(data[row], f"{piece.name}#{row}")
        if names and found.label is not None and found.label.isdecimal():
            found = found._replace(label=names[int(found.label)])
        yield found


def _read_json_lines(piece: Piece, fields: Fields) -> Iterator[Document]:
    with _open_file(piece) as file:
        lines = gzip.GzipFile(fileobj=file) if piece.key.lower().endswith(".gz") else file
        for number, line in enumerate(_json_records(lines)):
            if not line.strip():
                continue
            name = f"{piece.name}#{number}"
            try:
                record = json.loads(line)
            except ValueError:
                yield Document(name, None)
                continue
            fields.require(record if isinstance(record, dict) else [], name)
            yield fields.document(record, name)


def _json_records(lines: Iterable[bytes]) -> Iterator[bytes]:
    """The lines, or the elements of a single array, which is parsed as a whole."""
    lines = iter(lines)
    first = next(lines, b"")
    if not first.lstrip().startswith(b"["):
        yield first
        yield from lines
        return
    for record in json.loads(first + b"".join(lines)):
        yield json.dumps(record).encode()


def _read_csv(piece: Piece, fields: Fields) -> Iterator[Document]:
    with _open_file(piece) as file:
        csv.field_size_limit(_CSV_FIELD_BYTES)
        lines = io.TextIOWrapper(file, encoding="utf-8-sig", errors="surrogateescape", newline="")
        table = csv.DictReader(lines, delimiter="\t" if piece.key.endswith(".tsv") else ",")
        fields.require(table.fieldnames or [], piece.name)
        for number, record in enumerate(table):
            yield fields.document(record, f"{piece.name}#{number}")


def _read_parquet(piece: Piece, fields: Fields) -> Iterator[Document]:
    import pyarrow.parquet as pq

    with _open_file(piece) as file:
        table = pq.ParquetFile(file)
        fields.require(table.schema_arrow.names, piece.name)
        number = 0
        for batch in table.iter_batches(BATCH_RECORDS, columns=fields.names):
            for record in batch.to_pylist():
                yield fields.document(record, f"{piece.name}#{number}")
                number += 1


_READERS = {"jsonl": _read_json_lines, "csv": _read_csv, "parquet": _read_parquet}


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
