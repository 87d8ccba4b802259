"""Preview of the prepare stage on the first documents of a corpus, in this process."""

import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from kdscale.config.data import DataConfig, SourceConfig
from kdscale.config.task import Task
from kdscale.data.chat.messages import plain_text
from kdscale.data.cleaning.cleaner import FIRST_STEP, Cleaner, Status
from kdscale.data.cleaning.minhash import first_of_alike
from kdscale.data.documents import TokenDocument
from kdscale.data.rows.classes import UNKNOWN_LABEL, Classes, find_classes
from kdscale.data.rows.pack import RowCounts, concatenate
from kdscale.data.rows.selection import source_name
from kdscale.data.rows.splits import make_builder
from kdscale.data.sources.corpus import Corpus, find_corpus
from kdscale.data.sources.fields import Document, readable
from kdscale.data.sources.folders import describe_unread
from kdscale.data.sources.readers import read_shard
from kdscale.data.tokenizer import (
    TOKENIZER_FILE,
    TokenizerInfo,
    adopt_tokenizer,
    encode,
    train_tokenizer,
)
from kdscale.errors import KdscaleError
from kdscale.store import explained
from kdscale.types import Rows, labels_of


@dataclass(frozen=True)
class DocumentPreview:
    """One document as its container has it, and the outcome of cleaning."""

    name: str
    before: int  # characters, or bytes where it was not decoded
    text: str  # as a reader sees it; empty where it is dropped
    content: str  # as it is encoded: of a conversation its messages
    outcome: str  # "kept", or why it is not
    changed_by: tuple[str, ...]
    label: str | None


@dataclass(frozen=True)
class RowPreview:
    """One row token by token."""

    tokens: list[str]
    is_target: list[bool]  # whether the model predicts at this position
    expected: list[str]  # the prediction's label, "" elsewhere
    padding: int


@dataclass(frozen=True)
class Preview:
    """The first documents, their rows and their counts."""

    documents: list[DocumentPreview]
    rows: list[RowPreview]
    counts: RowCounts
    tokenizer: str
    chat: str | None  # how conversations are rendered
    conversations: int | None  # of which the texts are
    mixture: list[tuple[str, str]]  # (source, summary), of a mixture
    unread: list[tuple[str, str]]  # (place, files that give no document)


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
    """Return the first `documents` of a source (`train` or an evaluation set) and `rows` of theirs.

    A tokenizer that is to be trained is trained on these documents alone. Raises KdscaleError for
    an unknown source, and where no document is kept.
    """
    sources = config.sources.get(source)
    if sources is None:
        raise KdscaleError(
            f"There is no source {source!r}.", f"Choose from {', '.join(config.sources)}."
        )
    # The first documents of each source of a mixture.
    each_has = -(-documents // len(sources))
    corpora = [find_corpus(each) for each in sources]
    parts = [list(islice(_read(each, config), each_has)) for each in corpora]
    found = _cleaned(config, [document for part in parts for document in part])
    kept = _kept(found, source)
    classes = None
    if config.labels is not None:
        classes = find_classes(config.labels, [each.label for each in kept])
    tokenizer_json, info, what = _tokenizer(config, task, kept, teacher_tokenizer)
    overlap = config.overlap if source == "train" else config.evaluation_overlap
    builder = make_builder(task, config, info, overlap)
    labels = [UNKNOWN_LABEL if classes is None else classes.number(e.label) for e in kept]
    encoded = encode(tokenizer_json, info, [each.content for each in kept])
    built = builder.build(
        TokenDocument(each.tokens, each.byte_count, label, each.targets)
        for versions, label in zip(encoded, labels, strict=True)
        for each in versions
    )
    whole = concatenate(list(built), config.seq_len)
    is_mixture = source == "train" and isinstance(config.train, tuple)
    shown = whole.take(np.arange(min(rows, len(whole))))
    return Preview(
        documents=found,
        rows=list(_row_previews(shown, tokenizer_json, classes)),
        counts=builder.counts,
        tokenizer=f"{what}, {info.vocab_size:,} tokens",
        chat=None if info.chat is None else info.chat.summary,
        conversations=None if info.chat is None else len(kept),
        mixture=_mixture(sources, parts, found) if is_mixture else [],
        unread=[
            (each.place, describe_unread(each.counts, each.examples))
            for corpus in corpora
            for each in corpus.unread
        ],
    )


def _read(corpus: Corpus, config: DataConfig) -> Iterator[Document]:
    """Yield the documents of one source."""
    field = None if config.labels is None else config.labels.field
    for shard in corpus.inputs:
        yield from read_shard(shard, corpus.sources[0], field, config.chat)


def _tokenizer(
    config: DataConfig, task: Task, kept: list[DocumentPreview], teacher: Path | None
) -> tuple[str, TokenizerInfo, str]:
    """Return tokenizer.json, its facts and where it comes from."""
    with tempfile.TemporaryDirectory(prefix="kdscale-tokenizer-") as name:
        folder = Path(name)
        if teacher is None:
            size, masks = config.tokenizer.vocab_size, task == "masked-lm"
            texts = [each.text for each in kept]
            info = train_tokenizer(texts, size, folder, masks=masks, chat=config.chat)
        else:
            info = adopt_tokenizer(teacher, folder, chat=config.chat)
        what = "trained on these documents" if teacher is None else "the teacher's"
        return (folder / TOKENIZER_FILE).read_text(encoding="utf-8"), info, what


def _mixture(
    sources: Sequence[SourceConfig], parts: list[list[Document]], found: list[DocumentPreview]
) -> list[tuple[str, str]]:
    """Return a line for each source; how much is left out depends on all of their documents."""
    weights = [getattr(source, "weight", 1) for source in sources]
    lines, rest = [], iter(found)
    for source, weight, part in zip(sources, weights, parts, strict=True):
        kept = sum(each.outcome == "kept" for each in islice(rest, len(part)))
        share = f"{weight / sum(weights):.1%} of the mixture's text"
        what = f"{share}; {kept} of the first {len(part)} documents kept"
        lines.append((source_name(source), what))
    return lines


def _kept(found: list[DocumentPreview], source: str) -> list[DocumentPreview]:
    """Return the documents of `source` that are kept. Raises KdscaleError where none is."""
    kept = [each for each in found if each.outcome == "kept"]
    if not kept:
        outcomes = Counter(each.outcome for each in found)
        raise KdscaleError(
            f"None of the first {len(found)} documents of {source!r} is kept: {dict(outcomes)}"
            + (f", from {readable(found[0].name)} on." if found else "."),
            "Look at data.cleaning and data.min_characters, or ask for more documents.",
        )
    return kept


def _cleaned(config: DataConfig, documents: list[Document]) -> list[DocumentPreview]:
    """Return the outcome of each document; near duplicates among them are found too."""
    clean = Cleaner(config)
    kinds = [step.kind for step in config.cleaning]
    found = [(document, clean(document.content)) for document in documents]
    bands = [at for at, (_, cleaned) in enumerate(found) if cleaned.bands is not None]
    alike: set[int] = set()
    if bands:
        table = np.stack([np.frombuffer(found[at][1].bands or b"", "<u8") for at in bands])
        alike = {at for at, first in zip(bands, first_of_alike(table), strict=True) if not first}

    def visible(content: str) -> str:
        return content if config.chat is None or not content else plain_text(content)

    previews = []
    for at, (document, cleaned) in enumerate(found):
        outcome = _outcome(cleaned.status, kinds) if at not in alike else "nearly duplicate"
        content = cleaned.text if outcome == "kept" else ""
        raw = document.content or ""
        previews.append(
            DocumentPreview(
                name=document.name,
                before=len(visible(raw) if isinstance(raw, str) else raw),
                text=visible(content),
                content=content,
                outcome=outcome,
                changed_by=tuple(kind for n, kind in enumerate(kinds) if cleaned.changed >> n & 1),
                label=document.label if config.labels is not None else None,
            )
        )
    return previews


def _outcome(status: int, kinds: Sequence[str]) -> str:
    if status >= FIRST_STEP:
        return f"dropped by {kinds[status - FIRST_STEP]}"
    return Status(status).name.lower()


def _row_previews(rows: Rows, tokenizer_json: str, classes: Classes | None) -> Iterator[RowPreview]:
    from tokenizers import Tokenizer

    tokenizer: Any = Tokenizer.from_str(tokenizer_json)

    def label_name(label: int) -> str:
        if classes is None:
            return str(tokenizer.decode([label], skip_special_tokens=False))
        return "(no label)" if label == UNKNOWN_LABEL else classes.names[label]

    for ids, segments, mask, labels in zip(
        rows.input_ids, rows.segment_ids, rows.loss_mask, labels_of(rows), strict=True
    ):
        end = int(np.flatnonzero(segments)[-1]) + 1
        tokens = _texts(tokenizer, ids[:end].tolist())
        expected = ["" if not mask[at] else label_name(int(labels[at])) for at in range(end)]
        for at in np.flatnonzero(mask[: end - 1]):
            if classes is None and labels[at] == ids[at + 1]:
                expected[at] = tokens[at + 1]
        yield RowPreview(
            tokens=tokens,
            is_target=mask[:end].tolist(),
            expected=expected,
            padding=int((segments == 0).sum()),
        )


def _texts(tokenizer: Any, ids: list[int]) -> list[str]:
    """Return the text of each token where it stands; a character is its last token's.

    A token alone may be a part of a character, or lose the blank before it.
    """

    def decode(start: int, end: int) -> str:
        return str(tokenizer.decode(ids[start:end], skip_special_tokens=False))

    texts: list[str] = []
    start, known = 0, 0  # of the context, and characters of it that have been given
    for at in range(len(ids)):
        whole = decode(start, at + 1)
        if whole.endswith("\ufffd"):
            texts.append("")
            continue
        texts.append(whole[known:])
        start, known = at, len(decode(at, at + 1))
    return texts
