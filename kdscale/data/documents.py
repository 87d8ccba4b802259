"""Ray Data: reads, cleans and tokenises a corpus on the cluster, streaming and in a fixed order.

The cleaned documents stay in Ray's object store, which spills to disk; the driver sees their
hashes, then their tokens, a block at a time. This module loads no torch: its functions run in Ray's
workers.
"""

import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from kdscale.config.data import DataConfig, SourceConfig
from kdscale.data.augment import Augmenter
from kdscale.data.classes import UNKNOWN_LABEL, Classes
from kdscale.data.cleaner import Cleaner
from kdscale.data.cleaning import Status, name_hash, text_digest
from kdscale.data.corpus import Corpus
from kdscale.data.readers import Piece, read_piece
from kdscale.data.selection import Choice, Facts
from kdscale.data.strata import used_labels
from kdscale.data.tokenizer import TokenizerInfo, encode
from kdscale.errors import KdscaleError

BLOCKS_PER_CPU = 4
# A key is the piece's number times this, plus the document's number in the piece.
DOCUMENTS_PER_PIECE = 2**36
# Characters that a task holds at a time: an encoding takes about a hundred times more than its
# text.
CLEAN_CHARACTERS = 16 * 2**20
ENCODE_CHARACTERS = 2**20

# A line for each execution, and a warning that progress bars are off, tell the user nothing.
_RAY_LOGGERS = {
    "ray.data._internal.execution.streaming_executor": logging.WARNING,
    "ray.data._internal.progress": logging.ERROR,
}
_FACTS: dict[str, pa.DataType] = {
    "key": pa.int64(),
    "place": pa.uint64(),
    "digest": pa.binary(16),
    "size": pa.int64(),  # UTF-8 bytes
    "source": pa.uint32(),  # number in its mixture
    "status": pa.uint8(),  # a Status, or FIRST_STEP + the step that dropped it
    "changed": pa.uint32(),  # a bit for each step that changed it
    "bands": pa.binary(),  # of the search for near duplicates
    "label": pa.string(),
}
_DOCUMENTS = pa.schema({**_FACTS, "text": pa.large_string()})
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
    """Which documents, and which of their labels are used."""

    choice: Choice
    classes: Classes | None = None
    label_bounds: np.ndarray | None = None  # see `used_labels`; None: all
    augmenter: Augmenter | None = None  # their varied copies in place of themselves


def read_corpus(corpus: Corpus, config: DataConfig) -> Any:
    """The cleaned documents as a materialised Ray data set of `_DOCUMENTS`, in piece order.

    Raises KdscaleError where a piece cannot be read.
    """
    import ray

    for name, level in _RAY_LOGGERS.items():
        logging.getLogger(name).setLevel(level)
    cpus = max(1, int(ray.cluster_resources().get("CPU", 1)))
    items = [{"number": at, **asdict(piece)} for at, piece in enumerate(corpus.pieces)]
    blocks = min(len(items), BLOCKS_PER_CPU * cpus)
    data = ray.data.from_items(items, override_num_blocks=blocks)
    # The data set's own settings, which all that is derived from it inherits.
    data.context.execution_options.preserve_order = True
    data.context.enable_progress_bars = False
    data.context.print_on_execution_start = False
    data = data.map_batches(
        clean_pieces,
        batch_size=None,
        batch_format="pyarrow",
        fn_kwargs={"sources": corpus.sources, "config": config},
        **_placement(corpus, blocks),
    )
    if corpus.limit is not None:
        data = data.limit(corpus.limit)
    with _readable_errors():
        return data.materialize()


def read_labels(data: Any) -> Iterator[str | None]:
    """The labels of all documents that were kept, as they are written."""
    for batch in _batches(data.select_columns(["status", "label"])):
        kept = batch["status"].to_numpy() == Status.KEPT
        yield from batch["label"].filter(pa.array(kept)).to_pylist()


def read_facts(data: Any, classes: Classes | None = None) -> Facts:
    """What the driver needs to know of the documents in `data` (from `read_corpus`). KdscaleError
    for a label that is none of the classes."""
    batches = list(_batches(data.select_columns(list(_FACTS))))
    table: Any = pa.Table.from_batches(batches, pa.schema(_FACTS))
    digests = b"".join(table["digest"].to_pylist())
    keys = table["key"].to_numpy()
    assert (keys[1:] > keys[:-1]).all(), "Ray Data was told to preserve the order"
    return Facts(
        keys=keys,
        places=table["place"].to_numpy(),
        digests=np.frombuffer(digests, "<u8").reshape(-1, 2),
        status=table["status"].to_numpy(),
        labels=_numbers(table["label"], classes),
        changed=table["changed"].to_numpy(),
        bands=_bands(table["bands"].to_pylist()),
        sizes=table["size"].to_numpy(),
        sources=table["source"].to_numpy(),
    )


def _bands(values: list[bytes | None]) -> np.ndarray | None:
    """[N, bands] uint64, 0 for documents that were not kept; None where none were made."""
    width = max((len(value) for value in values if value), default=0)
    if not width:
        return None
    whole = b"".join(value or bytes(width) for value in values)
    return np.frombuffer(whole, "<u8").reshape(len(values), -1)


def read_texts(data: Any, chosen: Chosen) -> Iterator[str]:
    """The chosen documents' texts, in order, streamed to the driver."""
    picked = data.map_batches(
        pick, batch_size=None, batch_format="pyarrow", fn_kwargs={"chosen": chosen}
    )
    for batch in _batches(picked):
        yield from batch["text"].to_pylist()


def read_tokens(
    data: Any, chosen: Chosen, tokenizer_json: str, info: TokenizerInfo
) -> Iterator[TokenDocument]:
    """The chosen documents in order."""
    encoded = data.map_batches(
        encode_documents,
        batch_size=None,
        batch_format="pyarrow",
        fn_kwargs={"chosen": chosen, "tokenizer_json": tokenizer_json, "info": info},
    )
    for batch in _batches(encoded):
        tokens, offsets = batch["tokens"].values.to_numpy(), batch["tokens"].offsets.to_numpy()
        others = (batch[name].to_pylist() for name in ("bytes", "label", "targets"))
        for at, (byte_count, label, mask) in enumerate(zip(*others, strict=True)):
            targets = None if mask is None else np.frombuffer(mask, bool)
            yield TokenDocument(tokens[offsets[at] : offsets[at + 1]], byte_count, label, targets)


def clean_pieces(
    batch: pa.Table, *, sources: Sequence[SourceConfig], config: DataConfig
) -> Iterator[pa.Table]:
    """A Ray Data task: the documents of some pieces, those left out with an empty text."""
    label_field = None if config.labels is None else config.labels.field
    clean_text = Cleaner(config)
    records: list[dict[str, Any]] = []
    characters = 0
    for item in batch.to_pylist():
        first_key = item.pop("number") * DOCUMENTS_PER_PIECE
        piece = Piece(**item)
        documents = read_piece(piece, sources[piece.source], label_field, config.chat)
        for at, found in enumerate(documents):
            cleaned = clean_text(found.content)
            records.append(
                {
                    "key": first_key + at,
                    "place": name_hash(found.name),
                    "digest": text_digest(cleaned.text),
                    "size": len(cleaned.text.encode("utf-8")),
                    "source": piece.source,
                    "status": cleaned.status,
                    "changed": cleaned.changed,
                    "bands": cleaned.bands,
                    "label": None if label_field is None else found.label,
                    "text": cleaned.text,
                }
            )
            characters += len(cleaned.text)
            if characters >= CLEAN_CHARACTERS:
                yield pa.Table.from_pylist(records, _DOCUMENTS)
                records, characters = [], 0
    yield pa.Table.from_pylist(records, _DOCUMENTS)


def pick(batch: pa.Table, *, chosen: Chosen) -> pa.Table:
    """A Ray Data task: texts, places and labels of the chosen documents, the labels as numbers."""
    readable = batch["status"].to_numpy() == Status.KEPT
    places, labels = batch["place"].to_numpy(), _numbers(batch["label"], chosen.classes)
    covered = readable & chosen.choice.covers(batch["key"].to_numpy(), places, labels)
    if chosen.label_bounds is not None:
        labels = used_labels(places, labels, chosen.label_bounds)
    picked = batch.select(["text"]).append_column("label", pa.array(labels))
    return picked.filter(pa.array(covered))


def encode_documents(
    batch: pa.Table, *, chosen: Chosen, tokenizer_json: str, info: TokenizerInfo
) -> Iterator[pa.Table]:
    """A Ray Data task: the chosen documents as columns of `_TOKENS`."""
    picked: Any = pick(batch, chosen=chosen)
    if chosen.augmenter is not None:
        picked = _varied(picked, chosen.augmenter)
    first, labels = 0, picked["label"].to_pylist()
    for texts in _groups(picked["text"].to_pylist()):
        documents = list(encode(tokenizer_json, info, texts))
        tokens = [each.tokens for each in documents]
        offsets = np.cumsum([0, *map(len, tokens)])
        yield pa.table(
            [
                pa.LargeListArray.from_arrays(pa.array(offsets), pa.array(np.concatenate(tokens))),
                [each.byte_count for each in documents],
                labels[first : first + len(texts)],
                [None if each.targets is None else each.targets.tobytes() for each in documents],
            ],
            schema=_TOKENS,
        )
        first += len(texts)


def _varied(picked: Any, augmenter: Augmenter) -> pa.Table:
    """The varied copies of the picked documents, with their labels."""
    pairs = zip(picked["text"].to_pylist(), picked["label"].to_pylist(), strict=True)
    found = [(copy, label) for text, label in pairs for copy in augmenter.vary(text)]
    texts = pa.array([copy for copy, _ in found], pa.large_string())
    labels = pa.array([label for _, label in found], pa.int32())
    return pa.table({"text": texts, "label": labels})


def _numbers(labels: Any, classes: Classes | None) -> np.ndarray:
    """[N] int32 of a column of labels as they are written; -1 everywhere without classes."""
    if classes is None:
        return np.full(len(labels), UNKNOWN_LABEL, np.int32)
    return np.array([classes.number(label) for label in labels.to_pylist()], np.int32)


def _groups(texts: list[str]) -> Iterator[list[str]]:
    """The texts in groups of about ENCODE_CHARACTERS."""
    group: list[str] = []
    characters = 0
    for text in texts:
        group.append(text)
        characters += len(text)
        if characters >= ENCODE_CHARACTERS:
            yield group
            group, characters = [], 0
    if group:
        yield group


def _batches(data: Any) -> Iterator[Any]:
    """The blocks of a data set, in order."""
    with _readable_errors():
        for table in data.iter_batches(batch_size=None, batch_format="pyarrow"):
            # A task that had nothing to give leaves a block without columns.
            if table.num_rows:
                yield from table.to_batches()


def _placement(corpus: Corpus, blocks: int) -> dict[str, Any]:
    """Where the pieces can be read: this machine's files here only, a store's anywhere.

    Reading here takes no CPU from Ray's books, because the head node of a cluster often has none;
    the pool's size keeps it to the cores there are.
    """
    if not corpus.local:
        return {}
    import ray

    return {
        "num_cpus": 0,
        "compute": ray.data.TaskPoolStrategy(size=min(blocks, os.cpu_count() or 1)),
        "label_selector": {"ray.io/node-id": ray.get_runtime_context().get_node_id()},
    }


@contextmanager
def _readable_errors() -> Iterator[None]:
    """Raise the KdscaleError that a task raised, without Ray's wrapping."""
    try:
        yield
    except Exception as error:  # Ray's own types differ from release to release
        link: BaseException | None = error
        while link is not None:
            if type(link) is KdscaleError:
                raise link from None
            link = getattr(link, "cause", None) or link.__cause__
        raise
