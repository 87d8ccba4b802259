"""Documents of one input of a corpus, as bytes or text that is not cleaned yet.

An input is what one task reads: a file, or a range of rows of a Hugging Face data set. Files are
read through the store in ranges, so that one may be larger than memory. A record's name is its file
and its number in it: it stays the same when records are appended.
"""

import csv
import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import PurePosixPath
from typing import Any, Literal

import pyarrow as pa

from kdscale.config.chat import ChatConfig
from kdscale.config.data import SourceConfig
from kdscale.data.chat.template import ChatTemplate
from kdscale.data.sources.csv_records import NotCsvError, Table
from kdscale.data.sources.fields import Document, Fields, readable
from kdscale.data.sources.json_records import NotJsonError, json_records
from kdscale.data.sources.opening import (
    DAMAGES,
    PARQUET,
    open_raw,
    open_unpacked,
    read_head,
    read_whole,
    refuse_others,
)
from kdscale.errors import KdscaleError
from kdscale.store import download_folder, open_store
from kdscale.utils.local_cache_dir import local_cache_dir

BATCH_RECORDS = 256
_HOPELESS_RECORDS = 10_000
_WRAPPER = "; an object that wraps records needs one list of them, and to be alone in its file"
_DAMAGED = (*DAMAGES, csv.Error, NotCsvError, NotJsonError, RecursionError)


@dataclass(frozen=True)
class InputShard:
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


class _Tally:
    """Count of the records of an input that cannot be decoded, and the first problem."""

    def __init__(self) -> None:
        self.records = self.broken = 0
        self.first = ""
        self._problem = ""

    def broke(self, name: str, problem: str) -> Document:
        """Return the document that stands for a record that cannot be decoded."""
        self._problem = problem
        return Document(name, None)

    def count(self, document: Document) -> None:
        """Count a document."""
        self.records += 1
        problem = self._problem or _problem_of(document)
        self._problem = ""
        if problem:
            self.broken += 1
            self.first = self.first or problem

    @property
    def is_hopeless(self) -> bool:
        """True if none of many records could be decoded."""
        return self.broken == self.records == _HOPELESS_RECORDS


def _problem_of(document: Document) -> str:
    """Return why the content of a document is no text; empty where it is."""
    content, number = document.content, document.name.rpartition("#")[2]
    if content is None:
        return f"record {number} is not JSON"
    try:
        _ = content.decode("utf-8") if isinstance(content, bytes) else content.encode("utf-8")
    except UnicodeError as error:
        return f"record {number}: {error}"
    return ""


def read_shard(
    shard: InputShard,
    source: SourceConfig,
    label_field: str | None = None,
    chat: ChatConfig | None = None,
    template: ChatTemplate | None = None,
) -> Iterator[Document]:
    """Yield the documents of an input, with their labels where there is a `label_field`.

    With `chat` they are conversations, whose fields the `template`, where it is known, has to
    write. Raises KdscaleError where a record has no `text_field` that holds text, no conversation
    or no label, where a container cannot be read to its end, or where most of its records cannot be
    decoded.
    """
    tally, fields = _Tally(), Fields(source.text_field, label_field, chat, template)
    shown = readable(shard.name)
    try:
        for document in _documents(shard, fields, source, tally):
            tally.count(document)
            if tally.is_hopeless:
                break
            yield document
    except _DAMAGED as error:
        raise KdscaleError(
            f"{shown} is damaged or not a {shard.reader} file: {readable(str(error))}",
            "Write the file again, or take it out of the source.",
        ) from error
    except OSError as error:
        raise KdscaleError(
            f"{shown} is damaged or cannot be read: {readable(str(error))}",
            "Check that it is there and may be read; write it again, or take it out of the source.",
        ) from error
    if tally.broken * 2 > tally.records and shard.reader in _READERS:
        raise KdscaleError(
            f"{tally.broken:,} of the {tally.records:,} records of {shown} cannot be decoded; the "
            f"first: {readable(tally.first)}",
            f"Look whether it is a {shard.reader} file in UTF-8, write it again, or take it out of "
            "the source.",
        )


def _documents(
    shard: InputShard, fields: Fields, source: SourceConfig, tally: _Tally
) -> Iterator[Document]:
    if shard.reader == "huggingface":
        yield from _read_hub_rows(shard, fields, source)
    elif shard.reader in _READERS:
        head = read_head(shard.root, shard.key)
        is_parquet = head.startswith(PARQUET)
        if shard.reader == "parquet" and not is_parquet:
            refuse_others(head, readable(shard.name), "Parquet")
        if head:
            yield from _READERS["parquet" if is_parquet else shard.reader](shard, fields, tally)
    elif shard.reader == "metadata":
        content = long_description(open_store(shard.root).get(shard.key))
        yield Document(shard.name, content, _folder_of(shard))
    else:
        yield Document(shard.name, read_whole(shard.root, shard.key), _folder_of(shard))


def _folder_of(shard: InputShard) -> str | None:
    return PurePosixPath(shard.key).parent.name or None


def long_description(metadata: bytes) -> bytes:
    """Return the body of a distribution's METADATA, after the first empty line."""
    return metadata.replace(b"\r\n", b"\n").partition(b"\n\n")[2]


def is_saved_dataset(name: str) -> bool:
    """Tell whether a data set is a folder or URL that `save_to_disk` wrote."""
    store = open_store(name)
    return store.exists("state.json") or store.exists("dataset_dict.json")


@lru_cache(maxsize=4)
def load_hub_dataset(name: str, subset: str | None, split: str | None) -> Any:
    """Load a Hugging Face data set's split, memory-mapped; its builder without `split`.

    Raises KdscaleError where it cannot be loaded.
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
    """Return the folder of a saved data set on this machine, fetched if it is remote."""
    store = open_store(name)
    here = store.local_path()
    if here is not None:
        return str(here)
    listed = repr([(entry.key, entry.size, entry.modified) for entry in store.entries()])
    copy = hashlib.sha256(f"{store.url}\0{listed}".encode()).hexdigest()[:16]
    parent, _, last = store.url.rpartition("/")
    return str(download_folder(open_store(parent), last, local_cache_dir("datasets") / copy))


def _read_hub_rows(shard: InputShard, fields: Fields, source: SourceConfig) -> Iterator[Document]:
    data = load_hub_dataset(shard.root, source.subset, source.split)
    fields.require(data.column_names, shard.name)
    # Others, such as images, are not decoded then. It may have been saved with a format.
    data = data.with_format(None).select_columns(fields.columns(data.column_names))
    for name, feature in data.features.items():
        if hasattr(feature, "decode_example") and type(feature).__name__ != "Json":
            raise KdscaleError(
                f"The field {name!r} of {shard.name} holds {type(feature).__name__}, not text.",
                "Set `text_field` of the source (or data.chat) to a field that holds text.",
            )
    # Classes that a data set numbers have their names in its features.
    names = getattr(data.features[fields.label], "names", None) if fields.label else None
    for row in range(shard.start, shard.stop):
        found = fields.document(_row(data, row, shard), f"{shard.name}#{row}")
        if names and found.label is not None and found.label.isdecimal():
            found = found._replace(label=names[int(found.label)])
        yield found


def _row(data: Any, row: int, shard: InputShard) -> Any:
    try:
        return data[row]
    except ImportError as error:
        # A value inside of messages that only another library can decode.
        raise KdscaleError(
            f"Row {row} of {shard.name} holds more than text: {error}",
            "Take the field out of the data set (datasets' `map` or `cast`), or another field.",
        ) from error


def _read_json(shard: InputShard, fields: Fields, tally: _Tally) -> Iterator[Document]:
    with open_raw(shard.root, shard.key) as file:
        opened = open_unpacked(file)
        refuse_others(opened.head, readable(shard.name), "JSON")
        needed = set(fields.needed)
        for number, record, problem in json_records(opened, fields.unwrap):
            name = f"{shard.name}#{number}"
            if problem:
                yield tally.broke(name, problem)
                continue
            if not isinstance(record, dict) or not needed <= record.keys():
                _refuse_record(record, fields, name)
            yield fields.document(record, name)


def _refuse_record(record: Any, fields: Fields, name: str) -> None:
    """Refuse a value that is no record, or misses the fields."""
    have = record if isinstance(record, dict) else {}
    wraps = any(isinstance(each, list) for each in have.values())
    fields.require(have, readable(name), _WRAPPER if wraps else "")


def _read_csv(shard: InputShard, fields: Fields, tally: _Tally) -> Iterator[Document]:
    with open_raw(shard.root, shard.key) as file:
        opened = open_unpacked(file)
        refuse_others(opened.head, readable(shard.name), "CSV")
        is_tabbed = ".tsv" in PurePosixPath(shard.key.lower()).suffixes
        table = Table(opened.file, opened.head, fields.needed, "\t" if is_tabbed else ",")
        if not table.columns:
            return  # It is empty.
        is_json = opened.head.lstrip()[:1] in (b"{", b"[")
        but = ", or `kind: jsonl` for a file of JSON" if is_json else ""
        fields.require(table.columns, readable(shard.name), but)
        for column in fields.needed:
            if table.columns.count(column) > 1:
                raise KdscaleError(
                    f"{readable(shard.name)} has several columns {column!r}.", "Rename the others."
                )
        for number, row in enumerate(table):
            name = f"{shard.name}#{number}"
            if row.is_long or any(each not in row.values for each in fields.contents):
                yield tally.broke(name, row.problem)
            else:
                yield fields.document(dict.fromkeys(table.columns) | row.values, name)


def _read_parquet(shard: InputShard, fields: Fields, tally: _Tally) -> Iterator[Document]:
    import pyarrow.parquet as pq

    with open_raw(shard.root, shard.key) as file:
        table = pq.ParquetFile(file, page_checksum_verification=True)
        fields.require(table.schema_arrow.names, shard.name)
        number = 0
        columns = fields.columns(table.schema_arrow.names)
        for batch in table.iter_batches(BATCH_RECORDS, columns=columns):
            for record in _rows(batch, fields.text):
                yield fields.document(record, f"{shard.name}#{number}")
                number += 1


def _rows(batch: Any, text: str) -> list[dict[str, Any]]:
    """Return the rows of a batch; texts as bytes where one of them is not UTF-8."""
    try:
        rows: list[dict[str, Any]] = batch.to_pylist()
    except UnicodeDecodeError:
        at = batch.schema.get_field_index(text)
        texts = batch.column(at).cast(pa.large_binary())
        rows = batch.set_column(at, text, texts).to_pylist()
    return rows


_READERS = {"jsonl": _read_json, "csv": _read_csv, "parquet": _read_parquet}
