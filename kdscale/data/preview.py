"""What the prepare stage will do with a corpus, shown on its first documents, in this process."""

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
from kdscale.data.classes import UNKNOWN_LABEL, Classes, find_classes
from kdscale.data.cleaner import Cleaner
from kdscale.data.cleaning import FIRST_STEP, Status
from kdscale.data.corpus import find_corpus
from kdscale.data.documents import TokenDocument
from kdscale.data.near import first_of_alike
from kdscale.data.readers import Document, read_piece
from kdscale.data.rows import RowCounts, concatenate
from kdscale.data.splits import make_builder
from kdscale.data.tokenizer import TOKENIZER_FILE, adopt_tokenizer, encode, train_tokenizer
from kdscale.errors import KdscaleError
from kdscale.types import Rows, labels_of


@dataclass(frozen=True)
class Seen:
    """One document: what its container has, and what became of it."""

    name: str
    before: int  # characters, or bytes of an undecoded one
    text: str  # empty where it is dropped
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
    sources = {"train": config.train, **config.evaluate}
    if source not in sources:
        raise KdscaleError(f"There is no source {source!r}.", f"Choose from {', '.join(sources)}.")
    seen = _cleaned(config, list(islice(_documents(sources[source], config), documents)))
    kept = [each for each in seen if each.fate == "kept"]
    if not kept:
        fates = Counter(each.fate for each in seen)
        raise KdscaleError(
            f"None of the first {len(seen)} documents of {source!r} is kept: {dict(fates)}.",
            "Look at data.cleaning and data.min_characters, or ask for more documents.",
        )
    classes = None
    if config.labels is not None:
        classes = find_classes(config.labels, [each.label for each in kept])
    texts = [each.text for each in kept]
    with tempfile.TemporaryDirectory(prefix="kdscale-tokenizer-") as name:
        folder = Path(name)
        if teacher_tokenizer is None:
            size = config.tokenizer.vocab_size
            info = train_tokenizer(texts, size, folder, masks=task == "masked-lm")
            what = f"trained on these documents, {info.vocab_size:,} tokens"
        else:
            info = adopt_tokenizer(teacher_tokenizer, folder)
            what = f"the teacher's, {info.vocab_size:,} tokens"
        encoded = (folder / TOKENIZER_FILE).read_text(encoding="utf-8")
    builder = make_builder(task, config, info)
    numbers = [UNKNOWN_LABEL if classes is None else classes.number(e.label) for e in kept]
    pairs = zip(encode(encoded, info, texts), numbers, strict=True)
    made = list(builder.build(TokenDocument(*tokens, label) for tokens, label in pairs))
    whole = concatenate(made, config.row_length)
    shown = whole.take(np.arange(min(rows, len(whole))))
    return Preview(seen, list(_shown(shown, encoded, classes)), builder.counts, what)


def _documents(source: SourceConfig, config: DataConfig) -> Iterator[Document]:
    field = None if config.labels is None else config.labels.field
    for piece in find_corpus(source).pieces:
        yield from read_piece(piece, source, field)


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
        text = cleaned.text if fate == "kept" else ""
        before = len(document.content or "")
        label = document.label if config.labels is not None else None
        seen.append(Seen(document.name, before, text, fate, changed, label))
    return seen


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
