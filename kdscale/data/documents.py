"""Reads, cleans and tokenises a corpus on the cluster, streaming and in a fixed order.

Tasks write what they make to the store (`work`), a part at a time, and tell the driver how much it
is; the driver reads the hashes of documents, then their tokens, a part at a time. So neither Ray's
object store nor any process holds a corpus, and what a killed prepare has made is not made again.
This module loads no torch: its functions run in Ray's workers.
"""

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from itertools import chain, islice
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from kdscale.config.data import DataConfig, SourceConfig
from kdscale.data.chat.template import ChatTemplate
from kdscale.data.cleaning.augment import Augmenter
from kdscale.data.cleaning.cleaner import Cleaner
from kdscale.data.cleaning.normalise import Status, name_hash, text_digest
from kdscale.data.prepare_checkpoint import (
    Part,
    all_parts,
    batch_of,
    in_batches,
    part_name,
    read_batches,
    read_ends,
    whole_parts,
    write_batches,
    write_end,
)
from kdscale.data.ray_map import stream
from kdscale.data.rows.classes import Classes
from kdscale.data.rows.selection import Facts, no_facts
from kdscale.data.sources.corpus import Corpus
from kdscale.data.sources.fields import Document, readable
from kdscale.data.sources.readers import Piece, read_piece
from kdscale.data.tokenizer import TokenizerInfo, encode
from kdscale.store import Store

# Characters of a part, and those that are encoded at a time: an encoding takes about a hundred
# times more than its text.
CLEAN_CHARACTERS = 16 * 2**20
ENCODE_CHARACTERS = 2**20
_COLUMNS: dict[str, pa.DataType] = {
    "place": pa.uint64(),
    "digest": pa.binary(16),
    "size": pa.int64(),  # UTF-8 bytes
    "status": pa.uint8(),  # a Status, or FIRST_STEP + the step that dropped it
    "changed": pa.uint32(),  # a bit for each step that changed it
    "bands": pa.binary(),  # of the search for near duplicates
    "label": pa.string(),
}
_FACTS = pa.schema(_COLUMNS)
_UNDECODABLE = b"undecodable"
"""In the metadata of a part's facts: JSON of the names of the first documents that are so."""

NAMED_DOCUMENTS = 3
_TEXTS = pa.schema({"text": pa.large_string()})
_TOKENS = pa.schema(
    {
        "tokens": pa.large_list(pa.int32()),
        "bytes": pa.int64(),
        "label": pa.int32(),
        "targets": pa.binary(),  # a byte a token, of conversations alone
    }
)


class TokenDocument(NamedTuple):
    """A document as rows are built from it."""

    tokens: np.ndarray  # [n] int32, with start and end; see `encode` of conversations
    byte_count: int  # UTF-8, of what the targets stand for
    label: int  # -1 where none is known, or none is to be used
    targets: np.ndarray | None = None  # [n] bool: what is to be predicted; None: all but the first


@dataclass(frozen=True)
class Chosen:
    """Which of a source's N documents, and their labels as they are used."""

    covered: np.ndarray  # [N] bool
    labels: np.ndarray  # [N] int32


@dataclass(frozen=True)
class Encoding:
    """How texts become tokens."""

    tokenizer_json: str
    info: TokenizerInfo
    augmenter: Augmenter | None = None  # their varied copies in place of themselves


class Documents:
    """The cleaned documents of a source, in the order of its pieces: on the store, in parts."""

    def __init__(self, work: Store, source: str, parts: list[Part], here: bool) -> None:
        """`here`: tasks run on this machine only."""
        self._work = work
        self._texts = _cleaned(work, source)
        self._parts = parts
        self._here = here

    def __len__(self) -> int:
        return self._parts[-1].stop if self._parts else 0

    def labels(self) -> Iterator[str | None]:
        """The labels of all documents that were kept, as they are written."""
        for _, batch in self._facts():
            kept = batch["status"].to_numpy() == Status.KEPT
            yield from batch["label"].filter(pa.array(kept)).to_pylist()

    def sizes(self) -> np.ndarray:
        """[N] int64: UTF-8 bytes of each."""
        sizes = np.zeros(len(self), np.int64)
        for part, batch in self._facts():
            sizes[part.first : part.stop] = batch["size"].to_numpy()
        return sizes

    def sources(self, corpus: Corpus) -> np.ndarray:
        """[N] uint32: the number in its mixture of the source of each."""
        of_batch = [pieces[0].source for pieces in in_batches(corpus.pieces)]
        sources = np.zeros(len(self), np.uint32)
        for part in self._parts:
            sources[part.first : part.stop] = of_batch[batch_of(part.name)]
        return sources

    def facts(self, classes: Classes | None = None) -> Facts:
        """What the driver needs to know of them. KdscaleError for a label that is none of the
        classes."""
        facts = no_facts(len(self))
        for part, batch in self._facts():
            here = slice(part.first, part.stop)
            facts.places[here] = batch["place"].to_numpy()
            digests = b"".join(batch["digest"].to_pylist())
            facts.digests[here] = np.frombuffer(digests, "<u8").reshape(-1, 2)
            facts.status[here] = batch["status"].to_numpy()
            facts.changed[here] = batch["changed"].to_numpy()
            if len(facts.undecodable) < NAMED_DOCUMENTS:
                named = json.loads((batch.schema.metadata or {}).get(_UNDECODABLE, "[]"))
                facts.undecodable.extend(named[: NAMED_DOCUMENTS - len(facts.undecodable)])
            if classes is not None:
                facts.labels[here] = [classes.number(label) for label in batch["label"].to_pylist()]
            bands = _bands(batch["bands"].to_pylist())
            if bands is not None:
                if facts.bands is None:
                    facts = replace(facts, bands=np.zeros((len(self), bands.shape[1]), "<u8"))
                assert facts.bands is not None
                facts.bands[here] = bands
        return facts

    def texts(self, covered: np.ndarray) -> Iterator[str]:
        """The texts where `covered` ([N] bool), in order."""
        for part in self._parts:
            mask = covered[part.first : part.stop]
            if mask.any():
                yield from _picked(self._texts, part.name, mask)

    def tokens(self, split: str, chosen: Chosen, encoding: Encoding) -> Iterator[TokenDocument]:
        """The chosen documents, or their varied copies, in order. What a prepare that was killed
        has encoded under the name of this `split` is not encoded again."""
        store = self._work.child(f"{split}/{encoding.info.sha256[:16]}")
        there = set(store.list())
        wanted = [part for part in self._parts if chosen.covered[part.first : part.stop].any()]
        missing = [_item(part, chosen) for part in wanted if _tokens_key(part.name) not in there]
        options = {"texts": self._texts, "tokens": store, "encoding": encoding}
        with closing(stream(encode_part, missing, self._here, options)) as made:
            # Tasks begin when the first is asked for: beside what is read of those that are there.
            ready = chain(list(islice(made, 1)), made)
            for part in wanted:
                if _tokens_key(part.name) not in there:
                    next(ready)
                for batch in read_batches(store, _tokens_key(part.name)):
                    yield from _token_documents(batch)

    def _facts(self) -> Iterator[tuple[Part, Any]]:
        for part in self._parts:
            for batch in read_batches(self._texts, f"{part.name}.facts"):
                yield part, batch.slice(0, part.stop - part.first)


def read_corpus(
    corpus: Corpus,
    config: DataConfig,
    work: Store,
    name: str,
    progress: Callable[[int, int], None],
    template: ChatTemplate | None = None,
) -> Documents:
    """Clean the documents of a corpus, but for those that an earlier start has cleaned under this
    `name` in `work`. `progress` counts batches; `template` is that of conversations.

    Raises KdscaleError where a piece cannot be read.
    """
    store, limit = _cleaned(work, name), corpus.limit
    here = corpus.local or store.local_path() is not None
    batches, ends = in_batches(corpus.pieces), read_ends(store)
    missing = [
        {"number": number, "pieces": [asdict(piece) for piece in pieces]}
        for number, pieces in enumerate(batches)
        if number not in ends
    ]
    options = {
        "work": store,
        "sources": corpus.sources,
        "config": config,
        "template": template,
    }
    read, found = 0, dict[int, list[int]]()
    with closing(stream(clean_batch, missing, here, options)) as made:
        for number in range(len(batches)):
            if limit is not None and read >= limit:
                break
            progress(number, len(batches))
            found[number] = ends[number] if number in ends else next(made)["documents"]
            read += sum(found[number])
    return Documents(work, name, all_parts(found, limit), here)


def clean_batch(
    batch: pa.Table,
    *,
    work: Store,
    sources: Sequence[SourceConfig],
    config: DataConfig,
    template: ChatTemplate | None = None,
) -> Iterator[pa.Table]:
    """A Ray Data task: the documents of some pieces, those left out with an empty text."""
    for item in batch.to_pylist():
        number, pieces = item["number"], [Piece(**piece) for piece in item["pieces"]]
        made = whole_parts(work, number)
        label_field = None if config.labels is None else config.labels.field
        # A batch has pieces of one source.
        source = sources[pieces[0].source]
        documents = (
            document
            for piece in pieces
            for document in read_piece(piece, source, label_field, config.chat, template)
        )
        rest = islice(documents, sum(made), source.limit)
        for facts, texts in _clean(rest, config):
            name = part_name(number, len(made))
            write_batches(work, f"{name}.texts", _TEXTS, [texts])
            write_batches(work, f"{name}.facts", facts.schema, [facts])
            made.append(len(texts))
        write_end(work, number, made)
        yield pa.table({"documents": pa.array([made], pa.list_(pa.int64()))})


def encode_part(
    batch: pa.Table, *, texts: Store, tokens: Store, encoding: Encoding
) -> Iterator[pa.Table]:
    """A Ray Data task: the chosen documents of parts as columns of `_TOKENS`."""
    for item in batch.to_pylist():
        name, count = item["part"], item["documents"]
        covered = np.unpackbits(np.frombuffer(item["covered"], np.uint8), count=count).astype(bool)
        picked = _picked(texts, name, covered)
        labelled = zip(picked, np.frombuffer(item["labels"], np.int32).tolist(), strict=True)
        write_batches(tokens, _tokens_key(name), _TOKENS, _encoded(labelled, encoding))
        yield pa.table({"part": [name]})


def _clean(
    documents: Iterable[Document], config: DataConfig
) -> Iterator[tuple[pa.RecordBatch, pa.RecordBatch]]:
    """Hashes and texts of about CLEAN_CHARACTERS at a time."""
    clean_text = Cleaner(config)
    rows: list[tuple[Any, ...]] = []
    texts: list[str] = []
    undecodable: list[str] = []
    characters = 0
    for found in documents:
        text, status, changed, bands = clean_text(found.content)
        if status == Status.UNDECODABLE and len(undecodable) < NAMED_DOCUMENTS:
            undecodable.append(readable(found.name))
        label = None if config.labels is None else found.label
        place, size = name_hash(found.name), len(text.encode("utf-8"))
        rows.append((place, text_digest(text), size, status, changed, bands, label))
        texts.append(text)
        characters += len(text)
        if characters >= CLEAN_CHARACTERS:
            yield _part(rows, texts, undecodable)
            rows, texts, undecodable, characters = [], [], [], 0
    if rows:
        yield _part(rows, texts, undecodable)


def _part(
    rows: list[tuple[Any, ...]], texts: list[str], undecodable: list[str]
) -> tuple[pa.RecordBatch, pa.RecordBatch]:
    columns = zip(*rows, strict=True)
    arrays = [pa.array(c, field.type) for c, field in zip(columns, _FACTS, strict=True)]
    named = {_UNDECODABLE: json.dumps(undecodable)} if undecodable else {}
    facts = pa.record_batch(arrays, schema=_FACTS.with_metadata(named))
    return facts, pa.record_batch([pa.array(texts, pa.large_string())], schema=_TEXTS)


def _encoded(documents: Iterable[tuple[str, int]], encoding: Encoding) -> Iterator[pa.RecordBatch]:
    """`_TOKENS` of (text, label) documents, of about ENCODE_CHARACTERS at a time."""
    vary = encoding.augmenter
    if vary is not None:
        documents = ((copy, label) for text, label in documents for copy in vary.vary(text))
    for group in _groups(documents):
        texts, labels = zip(*group, strict=True)
        encoded = list(encode(encoding.tokenizer_json, encoding.info, list(texts)))
        tokens = [each.tokens for each in encoded]
        offsets = np.cumsum([0, *map(len, tokens)])
        lists = pa.LargeListArray.from_arrays(pa.array(offsets), pa.array(np.concatenate(tokens)))
        sizes = pa.array([each.byte_count for each in encoded], pa.int64())
        targets = [None if each.targets is None else each.targets.tobytes() for each in encoded]
        columns = [lists, sizes, pa.array(labels, pa.int32()), pa.array(targets, pa.binary())]
        yield pa.record_batch(columns, schema=_TOKENS)


def _groups(documents: Iterable[tuple[str, int]]) -> Iterator[list[tuple[str, int]]]:
    """The documents in groups of about ENCODE_CHARACTERS."""
    group: list[tuple[str, int]] = []
    characters = 0
    for text, label in documents:
        group.append((text, label))
        characters += len(text)
        if characters >= ENCODE_CHARACTERS:
            yield group
            group, characters = [], 0
    if group:
        yield group


def _token_documents(batch: Any) -> Iterator[TokenDocument]:
    tokens, offsets = batch["tokens"].values.to_numpy(), batch["tokens"].offsets.to_numpy()
    others = (batch[name].to_pylist() for name in ("bytes", "label", "targets"))
    for at, (byte_count, label, mask) in enumerate(zip(*others, strict=True)):
        targets = None if mask is None else np.frombuffer(mask, bool)
        yield TokenDocument(tokens[offsets[at] : offsets[at + 1]], byte_count, label, targets)


def _item(part: Part, chosen: Chosen) -> dict[str, Any]:
    """What `encode_part` needs to know of a part."""
    covered = chosen.covered[part.first : part.stop]
    labels = chosen.labels[part.first : part.stop][covered]
    return {
        "part": part.name,
        "documents": len(covered),
        "covered": np.packbits(covered).tobytes(),
        "labels": labels.tobytes(),
    }


def _picked(texts: Store, part: str, covered: np.ndarray) -> Iterator[str]:
    """The texts of a part where `covered`, which leaves out what is beyond its end."""
    for batch in read_batches(texts, f"{part}.texts"):
        yield from batch["text"].slice(0, len(covered)).filter(pa.array(covered)).to_pylist()


def _bands(values: list[bytes | None]) -> np.ndarray | None:
    """[N, bands] uint64, 0 for documents that were not kept; None where none were made."""
    width = max((len(value) for value in values if value), default=0)
    if not width:
        return None
    whole = b"".join(value or bytes(width) for value in values)
    return np.frombuffer(whole, "<u8").reshape(len(values), -1)


def _cleaned(work: Store, source: str) -> Store:
    return work.child(f"{source}/documents")


def _tokens_key(part: str) -> str:
    return f"{part}.tokens"
