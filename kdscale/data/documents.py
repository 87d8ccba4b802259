"""Documents of a corpus, read, cleaned and tokenised on the cluster in a fixed order.

Ray tasks write a part of the documents at a time to the store (`prepare_checkpoint`); the driver
reads their hashes, then their tokens, a part at a time. So neither Ray's object store nor any
process holds a corpus, and a restarted prepare makes only what is missing. No torch in here: the
functions run in Ray's workers.
"""

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from itertools import chain, islice
from typing import Any, NamedTuple, TypeVar

import numpy as np
import pyarrow as pa

from kdscale.config.data import DataConfig, SourceConfig
from kdscale.data.chat.template import ChatTemplate
from kdscale.data.cleaning.augment import Augmenter
from kdscale.data.cleaning.cleaner import Cleaner, Status, name_hash, text_digest
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
from kdscale.data.ray_map import ray_map
from kdscale.data.rows.classes import Classes
from kdscale.data.rows.selection import DocumentTable, empty_table
from kdscale.data.sources.corpus import Corpus
from kdscale.data.sources.fields import Document, readable
from kdscale.data.sources.readers import InputShard, read_shard
from kdscale.data.tokenizer import TokenizerInfo, encode
from kdscale.store import Store

# Characters of a part, and those that are encoded at a time: an encoding takes about a hundred
# times more memory than its text.
CLEAN_CHARACTERS = 16 * 2**20
ENCODE_CHARACTERS = 2**20
NAMED_DOCUMENTS = 3
_COLUMNS: dict[str, pa.DataType] = {
    "rank": pa.uint64(),
    "digest": pa.binary(16),
    "size": pa.int64(),  # UTF-8 bytes
    "status": pa.uint8(),  # a Status, or FIRST_STEP + the step that dropped it
    "changed": pa.uint32(),  # a bit for each step that changed it
    "bands": pa.binary(),  # of the search for near duplicates
    "label": pa.string(),
}
_FACTS = pa.schema(_COLUMNS)
# Metadata of a part's facts: JSON of the names of its first undecodable documents.
_UNDECODABLE = b"undecodable"
_TEXTS = pa.schema({"text": pa.large_string()})
_TOKENS = pa.schema(
    {
        "tokens": pa.large_list(pa.int32()),
        "bytes": pa.int64(),
        "label": pa.int32(),
        "targets": pa.binary(),  # a byte a token; null but for conversations
    }
)
T = TypeVar("T")


class TokenDocument(NamedTuple):
    """A document as rows are built from it."""

    tokens: np.ndarray  # [n] int32, with start and end; see `encode` for conversations
    byte_count: int  # UTF-8 bytes of the text that the targets stand for
    label: int  # -1 where none is known, or none is to be used
    targets: np.ndarray | None = None  # [n] bool: tokens to predict; None: all but the first


@dataclass(frozen=True)
class Selection:
    """Chosen documents of a source's N, and their labels as they are used."""

    covered: np.ndarray  # [N] bool
    labels: np.ndarray  # [N] int32


@dataclass(frozen=True)
class Encoding:
    """Tokenizer of a split, and the augmenter whose copies take the place of the documents."""

    tokenizer_json: str
    info: TokenizerInfo
    augmenter: Augmenter | None = None


class Documents:
    """Cleaned documents of a source in the order of its inputs, kept in the store in parts."""

    def __init__(self, work: Store, source: str, parts: list[Part], here: bool) -> None:
        """Open the `parts` of `source` in `work`; `here` keeps tasks on this machine."""
        self._work = work
        self._texts = _cleaned(work, source)
        self._parts = parts
        self._here = here

    def __len__(self) -> int:
        return self._parts[-1].stop if self._parts else 0

    def labels(self) -> Iterator[str | None]:
        """Yield the labels of all documents that were kept, as they are written."""
        for _, batch in self._facts():
            kept = batch["status"].to_numpy() == Status.KEPT
            yield from batch["label"].filter(pa.array(kept)).to_pylist()

    def table(self, classes: Classes | None = None, mixture: Corpus | None = None) -> DocumentTable:
        """Return the facts by which documents are chosen; of a `mixture` sizes and sources too.

        Raises KdscaleError for a label that is none of the classes.
        """
        table = empty_table(len(self))
        if mixture is not None:
            sizes, sources = np.zeros(len(self), np.int64), np.zeros(len(self), np.uint32)
            table = replace(table, sizes=sizes, sources=sources)
            of_batch = [shards[0].source for shards in in_batches(mixture.inputs)]
        for part, batch in self._facts():
            at = slice(part.first, part.stop)
            table.ranks[at] = batch["rank"].to_numpy()
            digests = b"".join(batch["digest"].to_pylist())
            table.digests[at] = np.frombuffer(digests, "<u8").reshape(-1, 2)
            table.status[at] = batch["status"].to_numpy()
            table.changed[at] = batch["changed"].to_numpy()
            named = json.loads((batch.schema.metadata or {}).get(_UNDECODABLE, "[]"))
            table.undecodable.extend(named[: NAMED_DOCUMENTS - len(table.undecodable)])
            if classes is not None:
                table.labels[at] = [classes.number(label) for label in batch["label"].to_pylist()]
            if table.sizes is not None and table.sources is not None:
                table.sizes[at] = batch["size"].to_numpy()
                table.sources[at] = of_batch[batch_of(part.name)]
            bands = _bands(batch["bands"].to_pylist())
            if bands is not None:
                if table.bands is None:
                    table = replace(table, bands=np.zeros((len(self), bands.shape[1]), "<u8"))
                assert table.bands is not None
                table.bands[at] = bands
        return table

    def texts(self, covered: np.ndarray) -> Iterator[str]:
        """Yield the texts where `covered` ([N] bool), in order."""
        for part in self._parts:
            mask = covered[part.first : part.stop]
            if mask.any():
                yield from _filtered(self._texts, part.name, mask)

    def tokens(self, split: str, chosen: Selection, encoding: Encoding) -> Iterator[TokenDocument]:
        """Yield the chosen documents, or their augmented copies, in order.

        Parts that an interrupted prepare has encoded for this `split` are not encoded again.
        """
        store = self._work.child(f"{split}/{encoding.info.sha256[:16]}")
        present = set(store.list())
        wanted = [part for part in self._parts if chosen.covered[part.first : part.stop].any()]
        missing = [_item(part, chosen) for part in wanted if _tokens_key(part.name) not in present]
        options = {"texts": self._texts, "tokens": store, "encoding": encoding}
        with closing(ray_map(encode_part, missing, self._here, options)) as made:
            # Asking for the first starts all tasks, while parts that exist are read.
            made_parts = chain(list(islice(made, 1)), made)
            for part in wanted:
                if _tokens_key(part.name) not in present:
                    next(made_parts)
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
    """Clean the documents of a corpus, except batches already in `work` under this `name`.

    `progress` counts batches; `template` is that of conversations. Raises KdscaleError where an
    input cannot be read.
    """
    store, limit = _cleaned(work, name), corpus.limit
    here = corpus.local or store.local_path() is not None
    batches, ends = in_batches(corpus.inputs), read_ends(store)
    missing = [
        {"number": number, "inputs": [asdict(shard) for shard in shards]}
        for number, shards in enumerate(batches)
        if number not in ends
    ]
    options = {"work": store, "sources": corpus.sources, "config": config, "template": template}
    read, found = 0, dict[int, list[int]]()
    with closing(ray_map(clean_batch, missing, here, options)) as made:
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
    """Clean the documents of some inputs (a Ray task); dropped ones keep an empty text."""
    for item in batch.to_pylist():
        number, shards = item["number"], [InputShard(**shard) for shard in item["inputs"]]
        made = whole_parts(work, number)
        label_field = None if config.labels is None else config.labels.field
        source = sources[shards[0].source]  # all inputs of a batch are of one source
        documents = (
            document
            for shard in shards
            for document in read_shard(shard, source, label_field, config.chat, template)
        )
        for facts, texts in _clean(islice(documents, sum(made), source.limit), config):
            name = part_name(number, len(made))
            write_batches(work, f"{name}.texts", _TEXTS, [texts])
            write_batches(work, f"{name}.facts", facts.schema, [facts])
            made.append(len(texts))
        write_end(work, number, made)
        yield pa.table({"documents": pa.array([made], pa.list_(pa.int64()))})


def encode_part(
    batch: pa.Table, *, texts: Store, tokens: Store, encoding: Encoding
) -> Iterator[pa.Table]:
    """Tokenise the chosen documents of parts (a Ray task) into columns of `_TOKENS`."""
    for item in batch.to_pylist():
        name, count = item["part"], item["documents"]
        covered = np.unpackbits(np.frombuffer(item["covered"], np.uint8), count=count).astype(bool)
        chosen = _filtered(texts, name, covered)
        labelled = zip(chosen, np.frombuffer(item["labels"], np.int32).tolist(), strict=True)
        write_batches(tokens, _tokens_key(name), _TOKENS, _encoded(labelled, encoding))
        yield pa.table({"part": [name]})


def _clean(
    documents: Iterable[Document], config: DataConfig
) -> Iterator[tuple[pa.RecordBatch, pa.RecordBatch]]:
    """Yield facts and texts of about CLEAN_CHARACTERS at a time."""
    cleaner = Cleaner(config)
    cleaned = ((document, cleaner(document.content)) for document in documents)
    for group in _groups(cleaned, lambda pair: len(pair[1].text), CLEAN_CHARACTERS):
        undecodable = [
            readable(document.name)
            for document, (_, status, _, _) in group
            if status == Status.UNDECODABLE
        ][:NAMED_DOCUMENTS]
        rows = [
            (
                name_hash(document.name),
                text_digest(text),
                len(text.encode("utf-8")),
                status,
                changed,
                bands,
                None if config.labels is None else document.label,
            )
            for document, (text, status, changed, bands) in group
        ]
        columns = zip(*rows, strict=True)
        arrays = [pa.array(c, field.type) for c, field in zip(columns, _FACTS, strict=True)]
        named = {_UNDECODABLE: json.dumps(undecodable)} if undecodable else {}
        texts = pa.array([cleaned.text for _, cleaned in group], pa.large_string())
        facts = pa.record_batch(arrays, schema=_FACTS.with_metadata(named))
        yield facts, pa.record_batch([texts], schema=_TEXTS)


def _encoded(documents: Iterable[tuple[str, int]], encoding: Encoding) -> Iterator[pa.RecordBatch]:
    """Yield `_TOKENS` of (text, label) documents, of about ENCODE_CHARACTERS at a time."""
    augmenter = encoding.augmenter
    if augmenter is not None:
        documents = ((copy, label) for text, label in documents for copy in augmenter.vary(text))
    for group in _groups(documents, lambda pair: len(pair[0]), ENCODE_CHARACTERS):
        found = encode(encoding.tokenizer_json, encoding.info, [text for text, _ in group])
        pairs = [
            (each, label)
            for versions, (_, label) in zip(found, group, strict=True)
            for each in versions
        ]
        encoded, labels = zip(*pairs, strict=True)
        tokens = [each.tokens for each in encoded]
        offsets = np.cumsum([0, *map(len, tokens)])
        lists = pa.LargeListArray.from_arrays(pa.array(offsets), pa.array(np.concatenate(tokens)))
        sizes = pa.array([each.byte_count for each in encoded], pa.int64())
        targets = [None if each.targets is None else each.targets.tobytes() for each in encoded]
        columns = [lists, sizes, pa.array(labels, pa.int32()), pa.array(targets, pa.binary())]
        yield pa.record_batch(columns, schema=_TOKENS)


def _groups(items: Iterable[T], size: Callable[[T], int], least: int) -> Iterator[list[T]]:
    """Yield the items in groups whose sizes sum to `least` or a little more."""
    group: list[T] = []
    total = 0
    for item in items:
        group.append(item)
        total += size(item)
        if total >= least:
            yield group
            group, total = [], 0
    if group:
        yield group


def _token_documents(batch: Any) -> Iterator[TokenDocument]:
    tokens, offsets = batch["tokens"].values.to_numpy(), batch["tokens"].offsets.to_numpy()
    others = (batch[name].to_pylist() for name in ("bytes", "label", "targets"))
    for at, (byte_count, label, mask) in enumerate(zip(*others, strict=True)):
        targets = None if mask is None else np.frombuffer(mask, bool)
        yield TokenDocument(tokens[offsets[at] : offsets[at + 1]], byte_count, label, targets)


def _item(part: Part, chosen: Selection) -> dict[str, Any]:
    """Return the item of `encode_part` for a part."""
    covered = chosen.covered[part.first : part.stop]
    labels = chosen.labels[part.first : part.stop][covered]
    return {
        "part": part.name,
        "documents": len(covered),
        "covered": np.packbits(covered).tobytes(),
        "labels": labels.tobytes(),
    }


def _filtered(texts: Store, part: str, covered: np.ndarray) -> Iterator[str]:
    """Yield the texts of a part where `covered`, which may end before the part does."""
    for batch in read_batches(texts, f"{part}.texts"):
        yield from batch["text"].slice(0, len(covered)).filter(pa.array(covered)).to_pylist()


def _bands(values: list[bytes | None]) -> np.ndarray | None:
    """Return [N, bands] uint64, 0 for documents that were not kept; None where none were made."""
    width = max((len(value) for value in values if value), default=0)
    if not width:
        return None
    whole = b"".join(value or bytes(width) for value in values)
    return np.frombuffer(whole, "<u8").reshape(len(values), -1)


def _cleaned(work: Store, source: str) -> Store:
    return work.child(f"{source}/documents")


def _tokens_key(part: str) -> str:
    return f"{part}.tokens"
