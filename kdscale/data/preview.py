"""What the prepare stage will do with a corpus, shown on its first documents, in this process."""

import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from kdscale.config.data import DataConfig, SourceConfig, WeightedSource
from kdscale.config.task import Task
from kdscale.data.chat.messages import plain_text
from kdscale.data.cleaning.cleaner import Cleaner
from kdscale.data.cleaning.minhash import first_of_alike
from kdscale.data.cleaning.normalise import FIRST_STEP, Status
from kdscale.data.documents import TokenDocument
from kdscale.data.rows.classes import UNKNOWN_LABEL, Classes, find_classes
from kdscale.data.rows.pack import RowCounts, concatenate
from kdscale.data.rows.splits import make_builder
from kdscale.data.sources.corpus import Corpus, find_corpus
from kdscale.data.sources.fields import Document, readable
from kdscale.data.sources.folders import describe_unread
from kdscale.data.sources.mixture import source_name
from kdscale.data.sources.readers import read_piece
from kdscale.data.tokenizer import TOKENIZER_FILE, adopt_tokenizer, encode, train_tokenizer
from kdscale.errors import KdscaleError
from kdscale.store import explained
from kdscale.types import Rows, labels_of


@dataclass(frozen=True)
class Seen:
    """One document: what its container has, and what became of it."""

    name: str
    before: int  # characters, or bytes of an undecoded one
    text: str  # as a reader sees it; empty where it is dropped
    content: str  # as it is encoded: of a conversation its messages
    fate: str  # "kept", or why it is not
    changed_by: tuple[str, ...]
    label: str | None


@dataclass(frozen=True)
class ShownRow:
    """One row token by token."""

    tokens: list[str]
    is_target: list[bool]
    """Whether the model is to predict at this position, of masked and next tokens alike."""

    expected: list[str]
    """What it is to predict there; empty elsewhere."""

    padding: int


@dataclass(frozen=True)
class Preview:
    """The first documents, their rows, and what was counted on the way."""

    documents: list[Seen]
    rows: list[ShownRow]
    counts: RowCounts
    tokenizer: str
    mixture: list[tuple[str, str]]
    """(source, what is known of it) of a mixture's sources."""

    unread: list[tuple[str, str]]
    """(place, which files) of what the sources' folders hold besides."""


@explained()
def preview(
    config: DataConfig,
    task: Task,
    *,
    source: str = "train",
    documents: int = 50,
    rows: int = 3,
    teacher_tokenizer: Path | None = None,
) -> Preview:
    """The first `documents` of a source (`train` or an evaluation set), and `rows` of theirs.

    A tokenizer that is to be trained is trained on these documents alone. KdscaleError for a source
    that is not there, and where nothing is left.
    """
    sources = config.sources.get(source)
    if sources is None:
        raise KdscaleError(
            f"There is no source {source!r}.", f"Choose from {', '.join(config.sources)}."
        )
    # Of a mixture the first of each of its sources.
    each_has = -(-documents // len(sources))
    corpora = [find_corpus(each) for each in sources]
    parts = [list(islice(_documents(each, config), each_has)) for each in corpora]
    seen = _cleaned(config, [document for part in parts for document in part])
    kept = [each for each in seen if each.fate == "kept"]
    if not kept:
        fates = Counter(each.fate for each in seen)
        raise KdscaleError(
            f"None of the first {len(seen)} documents of {source!r} is kept: {dict(fates)}"
            + (f", from {readable(seen[0].name)} on." if seen else "."),
            "Look at data.cleaning and data.min_characters, or ask for more documents.",
        )
    classes = None
    if config.labels is not None:
        classes = find_classes(config.labels, [each.label for each in kept])
    texts = [each.content for each in kept]
    chat = config.chat
    with tempfile.TemporaryDirectory(prefix="kdscale-tokenizer-") as name:
        folder = Path(name)
        if teacher_tokenizer is None:
            size, masks = config.tokenizer.vocab_size, task == "masked-lm"
            read = [each.text for each in kept]
            info = train_tokenizer(read, size, folder, masks=masks, chat=chat)
            what = f"trained on these documents, {info.vocab_size:,} tokens"
        else:
            info = adopt_tokenizer(teacher_tokenizer, folder, chat=chat)
            what = f"the teacher's, {info.vocab_size:,} tokens"
        encoded = (folder / TOKENIZER_FILE).read_text(encoding="utf-8")
    overlap = config.overlap if source == "train" else config.evaluation_overlap
    builder = make_builder(task, config, info, overlap)
    numbers = [UNKNOWN_LABEL if classes is None else classes.number(e.label) for e in kept]
    pairs = zip(encode(encoded, info, texts), numbers, strict=True)
    made = list(
        builder.build(TokenDocument(*found[:2], label, found.targets) for found, label in pairs)
    )
    whole = concatenate(made, config.seq_len)
    shown = whole.take(np.arange(min(rows, len(whole))))
    mixture = _mixture(config.train, parts, seen) if source == "train" else []
    return Preview(
        documents=seen,
        rows=list(_shown(shown, encoded, classes)),
        counts=builder.counts,
        tokenizer=what,
        mixture=mixture,
        unread=[
            (each.place, describe_unread(each.counts, each.examples))
            for corpus in corpora
            for each in corpus.unread
        ],
    )


def _documents(corpus: Corpus, config: DataConfig) -> Iterator[Document]:
    """Of one source."""
    field = None if config.labels is None else config.labels.field
    for piece in corpus.pieces:
        yield from read_piece(piece, corpus.sources[0], field, config.chat)


def _mixture(
    train: SourceConfig | tuple[WeightedSource, ...],
    parts: list[list[Document]],
    seen: list[Seen],
) -> list[tuple[str, str]]:
    """A line for each source: how much is left out depends on all of their documents."""
    if isinstance(train, SourceConfig):
        return []
    lines, first, total = [], 0, sum(source.weight for source in train)
    for source, part in zip(train, parts, strict=True):
        kept = sum(each.fate == "kept" for each in seen[first : first + len(part)])
        first += len(part)
        share = source.weight / total
        what = f"{share:.1%} of the mixture's text; {kept} of the first {len(part)} documents kept"
        lines.append((source_name(source), what))
    return lines


def _cleaned(config: DataConfig, documents: list[Document]) -> list[Seen]:
    """What became of each; near duplicates among them too."""
    clean = Cleaner(config)
    kinds = [step.kind for step in config.cleaning]
    found = [(document, clean(document.content)) for document in documents]
    bands = [at for at, (_, cleaned) in enumerate(found) if cleaned.bands is not None]
    alike: set[int] = set()
    if bands:
        table = np.stack([np.frombuffer(found[at][1].bands or b"", "<u8") for at in bands])
        alike = {at for at, first in zip(bands, first_of_alike(table), strict=True) if not first}
    seen = []
    for at, (document, cleaned) in enumerate(found):
        fate = _fate(cleaned.status, kinds) if at not in alike else "nearly duplicate"
        changed = tuple(kind for n, kind in enumerate(kinds) if cleaned.changed >> n & 1)
        content = cleaned.text if fate == "kept" else ""
        text = _readable(content, config) if content else ""
        raw = document.content or ""
        before = len(_readable(raw, config) if isinstance(raw, str) and raw else raw)
        label = document.label if config.labels is not None else None
        seen.append(Seen(document.name, before, text, content, fate, changed, label))
    return seen


def _readable(content: str, config: DataConfig) -> str:
    """What a reader sees of a document."""
    return content if config.chat is None else plain_text(content)


def _fate(status: int, kinds: Sequence[str]) -> str:
    if status >= FIRST_STEP:
        return f"dropped by {kinds[status - FIRST_STEP]}"
    return Status(status).name.lower()


def _shown(rows: Rows, tokenizer_json: str, classes: Classes | None) -> Iterator[ShownRow]:
    from tokenizers import Tokenizer

    tokenizer: Any = Tokenizer.from_str(tokenizer_json)

    def read(token: int) -> str:
        return str(tokenizer.decode([token], skip_special_tokens=False))

    for ids, segments, mask, labels in zip(
        rows.input_ids, rows.segment_ids, rows.loss_mask, labels_of(rows), strict=True
    ):
        used = np.flatnonzero(segments)
        last = int(used[-1]) + 1
        yield ShownRow(
            tokens=[read(int(token)) for token in ids[:last]],
            is_target=mask[:last].tolist(),
            expected=[
                "" if not is_target else _name(int(label), read, classes)
                for is_target, label in zip(mask[:last], labels[:last], strict=True)
            ],
            padding=int((segments == 0).sum()),
        )


def _name(label: int, read: Any, classes: Classes | None) -> str:
    if classes is None:
        return str(read(label))
    return "(no label)" if label == UNKNOWN_LABEL else classes.names[label]
