"""The prepare stage: from configured sources to rows in shards, published by a manifest.

The driver chooses documents from their hashes (`rows.selection`); reading, cleaning and tokenising
run on the cluster (`documents`), which keeps its results in the store until the end
(`prepare_checkpoint`); rows are built in the driver (`rows.splits`), at about ten million tokens a
second, so that their order is the same on any cluster.
"""

import json
import re
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from kdscale.config import fingerprint
from kdscale.config.data import DataConfig, LabelsConfig, SourceConfig
from kdscale.config.places import without_folders
from kdscale.config.task import Task
from kdscale.data.chat.answers import RENDERING
from kdscale.data.chat.messages import plain_text
from kdscale.data.chat.template import template_to_train
from kdscale.data.cleaning.augment import Augmenter, table_paths
from kdscale.data.documents import Documents, Selection, read_corpus
from kdscale.data.prepare_checkpoint import WORK, clear_work
from kdscale.data.rows.classes import Classes, find_classes
from kdscale.data.rows.manifest import AUGMENTED, FORMAT, MANIFEST, VERSION, write_manifest
from kdscale.data.rows.selection import (
    LAST_RANK,
    DedupIndex,
    DocumentTable,
    FilterResult,
    HashRange,
    filter_documents,
    first_sample_rank,
    first_training_ranks,
    label_bounds,
    mix,
    step_counts,
    used_labels,
)
from kdscale.data.rows.splits import SplitWriter
from kdscale.data.sources.corpus import Corpus, corpus_identity, file_digest, find_corpus
from kdscale.data.tokenizer import TOKENIZER_FILE, TokenizerInfo, adopt_tokenizer, train_tokenizer
from kdscale.errors import KdscaleError
from kdscale.store import Store, upload_folder

# In the checkpoint: facts about the trained tokenizer, which is stored.
_TOKENIZER_INFO = "tokenizer.json"
_SPLIT_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
Progress = Callable[[int, int, str], None]


def data_identity(config: DataConfig, task: Task = "causal-lm") -> dict[str, Any]:
    """Return what fingerprints prepared data: task, config, format, the state of each source.

    Lists files and packages; of contents only synonym tables and chat templates are read. Raises
    KdscaleError for a missing or empty source, or an evaluation set of an unusable name.
    """
    files: dict[str, Any] = {}
    if config.augment is not None and (tables := table_paths(config.augment)):
        files["synonyms"] = [file_digest(path) for path in tables]
    # Digests stand for the files, so that a folder may be moved.
    fields = without_folders(config).model_dump(mode="json")
    # Fields that are not used are left out: names from before they existed stay valid.
    if config.chat is None:
        del fields["chat"]
    else:
        for name in config.chat.unused:
            del fields["chat"][name]
        files["chat_rendering"] = RENDERING
        if config.chat.template_file is not None:
            files["chat_template"] = file_digest(config.chat.template_file)
    sources: dict[str, Any] = {}
    for name, found in named_sources(config).items():
        identities = [corpus_identity(source) for source in found]
        is_mixture = name == "train" and isinstance(config.train, tuple)
        sources[name] = identities if is_mixture else identities[0]
    return files | {
        "format": [FORMAT, VERSION],
        "task": task,
        "config": fields,
        "sources": sources,
    }


def named_sources(config: DataConfig) -> dict[str, tuple[SourceConfig, ...]]:
    """Return all sources by the name of their split. Raises KdscaleError for an unusable name."""
    for name in config.evaluate:
        if name == "train" or not _SPLIT_NAME.fullmatch(name):
            raise KdscaleError(
                f"An evaluation set cannot be called {name!r}.",
                "Use letters, digits, dots, dashes and underscores, and not 'train'.",
            )
    return config.sources


def prepare(
    config: DataConfig,
    *,
    task: Task = "causal-lm",
    store: Store,
    teacher_tokenizer: Path | None,
    progress: Progress,
    identity: str | None = None,
) -> dict[str, Any]:
    """Write tokenizer, rows and, last, the manifest under `store`; return it. Needs a running Ray.

    `progress(done, total, note)` counts what is read of each source, then the documents of each
    split. The output follows from the config, the sources and the teacher's tokenizer. There is no
    seed: the held-out documents should be the same for every seed, and all order is left to the
    samplers. An interrupted prepare is resumed while the `identity` is the same, by default the
    fingerprint of `data_identity`. Raises KdscaleError for what the user can fix.
    """
    corpora = {name: find_corpus(*sources) for name, sources in named_sources(config).items()}
    augmenter = None if config.augment is None else Augmenter(config.augment)
    # A manifest of an earlier run must not stand over a mixture of its files and ours.
    store.delete(MANIFEST)
    identity = identity or fingerprint(data_identity(config, task))
    clear_work(store, keep=identity)
    work = store.child(f"{WORK}/{identity}")
    job = _Preparation(config, task, store, work, progress, teacher_tokenizer)
    adopted = job.adopted
    train = job.read_training(corpora["train"])
    first = train.first_training_ranks(config.validation_share)
    training = train.choose(first=first)
    progress(0, 1, f"{config.tokenizer.kind} tokenizer")
    tokenizer_json, info = adopted or job.train_tokenizer(train, training)
    writer = SplitWriter(task, config, store, tokenizer_json, info, progress)
    labelled = train.with_label_share(training, config.labels)
    splits = {"train": writer.write("train", train.documents, labelled)}
    if augmenter is not None:
        splits[AUGMENTED] = writer.write(AUGMENTED, train.documents, labelled, augmenter)
    held_out = train.choose(last=first - np.uint64(1), known=bool(train.names))
    splits["validation"] = writer.write_sample("validation", train.documents, held_out)
    sources = {"train": train}
    for name in config.evaluate:
        source = job.read(name, corpora[name], train.classes, train.dedup_index(training))
        sources[name] = source
        everything = source.choose(known=bool(train.names))
        _require_documents(name, source.result.counts, int(everything.covered.sum()))
        splits[name] = writer.write_sample(name, source.documents, everything)
    manifest = _manifest(config, task, info, sources, corpora, splits)
    write_manifest(store, manifest)
    clear_work(store)
    return manifest


@dataclass(frozen=True)
class _Source:
    """A source that has been read."""

    documents: Documents
    table: DocumentTable
    result: FilterResult
    classes: Classes | None

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the classes; none where documents have no classes."""
        return () if self.classes is None else self.classes.names

    def first_training_ranks(self, validation_share: float) -> np.ndarray:
        """Return the first rank of each class that trains."""
        kept = self.result.kept
        ranks, labels = self.table.ranks[kept], self.table.labels[kept]
        return first_training_ranks(ranks, labels, self.names, validation_share)

    def choose(
        self,
        first: np.ndarray | None = None,
        last: np.ndarray | None = None,
        *,
        known: bool = False,
    ) -> Selection:
        """Return the kept documents with ranks from `first` to `last` of their class.

        `known` leaves out documents whose class is not known.
        """
        bounds = 1 + len(self.names)
        first = np.zeros(bounds, np.uint64) if first is None else first
        last = np.full(bounds, LAST_RANK) if last is None else last
        if known:
            # From the last rank down to the first there is none.
            first, last = first.copy(), last.copy()
            first[0], last[0] = LAST_RANK, 0
        table = self.table
        covered = self.result.kept & HashRange(first, last).covers(table.ranks, table.labels)
        return Selection(covered, table.labels)

    def with_label_share(self, chosen: Selection, config: LabelsConfig | None) -> Selection:
        """Return the same documents, with the labels of the configured share of them."""
        if config is None or config.share == 1:
            return chosen
        ranks, labels, covered = self.table.ranks, self.table.labels, chosen.covered
        bounds = label_bounds(ranks[covered], labels[covered], len(self.names), config.share)
        return Selection(covered, used_labels(ranks, labels, bounds))

    def dedup_index(self, chosen: Selection) -> DedupIndex:
        """Return the hashes of the chosen documents, which others must not repeat."""
        covered, bands = chosen.covered, self.table.bands
        return DedupIndex(self.table.digests[covered], None if bands is None else bands[covered])

    def counts(self, config: DataConfig) -> dict[str, Any]:
        """Return the outcomes of the source's documents, for the manifest."""
        steps = step_counts(self.table, [step.kind for step in config.cleaning])
        mixture = [asdict(share) for share in self.result.mixture]
        more = {"mixture": mixture} if mixture else {}
        return self.result.counts | {"steps": steps} | more


@dataclass(frozen=True)
class _Preparation:
    """One call of `prepare`: reads its sources and makes its tokenizer."""

    config: DataConfig
    task: Task
    store: Store
    work: Store
    progress: Progress
    teacher_tokenizer: Path | None

    @cached_property
    def adopted(self) -> tuple[str, TokenizerInfo] | None:
        """Content of the teacher's tokenizer.json and its facts, stored; None if one is trained."""
        if self.config.tokenizer.kind != "teacher":
            return None
        assert self.teacher_tokenizer is not None
        with TemporaryDirectory(prefix="kdscale-tokenizer-") as name:
            info = adopt_for_task(self.config, self.task, self.teacher_tokenizer, Path(name))
            return self._upload(Path(name)), info

    def train_tokenizer(self, train: _Source, training: Selection) -> tuple[str, TokenizerInfo]:
        """Train the tokenizer and store it, unless an interrupted prepare has."""
        config = self.config
        if self.work.exists(_TOKENIZER_INFO):
            info = TokenizerInfo.from_dict(json.loads(self.work.get(_TOKENIZER_INFO)))
            return self.store.get(f"tokenizer/{TOKENIZER_FILE}").decode(), info
        ranks, most = train.table.ranks, config.tokenizer.sample_documents
        first = np.uint64(first_sample_rank(ranks[training.covered], most))
        texts = train.documents.texts(training.covered & (ranks >= first))
        texts = texts if config.chat is None else map(plain_text, texts)
        with TemporaryDirectory(prefix="kdscale-tokenizer-") as name:
            folder, masks, size = Path(name), self.task == "masked-lm", config.tokenizer.vocab_size
            info = train_tokenizer(texts, size, folder, masks=masks, chat=config.chat)
            encoded = self._upload(folder)
        self.work.put(_TOKENIZER_INFO, json.dumps(info.as_dict()).encode())
        return encoded, info

    def read_training(self, corpus: Corpus) -> _Source:
        """Read the training source, which also names the classes."""
        documents, labels = self._documents("train", corpus), self.config.labels
        classes = None if labels is None else find_classes(labels, documents.labels())
        train = self.config.train
        if not isinstance(train, tuple):
            table = documents.table(classes)
            return _Source(documents, table, filter_documents(table), classes)
        table = documents.table(classes, mixture=corpus)
        return _Source(documents, table, mix(filter_documents(table), table, train), classes)

    def read(
        self, name: str, corpus: Corpus, classes: Classes | None, training: DedupIndex
    ) -> _Source:
        """Read an evaluation source, without documents that are in `training`."""
        documents = self._documents(name, corpus)
        table = documents.table(classes)
        return _Source(documents, table, filter_documents(table, training), classes)

    def _documents(self, name: str, corpus: Corpus) -> Documents:
        def progress(done: int, total: int) -> None:
            self.progress(done, total, f"reading {name}")

        template = None
        if self.config.chat is not None:
            template = self.adopted[1].chat if self.adopted else template_to_train(self.config.chat)
        return read_corpus(corpus, self.config, self.work, name, progress, template)

    def _upload(self, folder: Path) -> str:
        """Store the folder of a tokenizer; return its `tokenizer.json`."""
        upload_folder(folder, self.store, "tokenizer")
        return (folder / TOKENIZER_FILE).read_text(encoding="utf-8")


def adopt_for_task(
    config: DataConfig, task: Task, teacher_tokenizer: Path, folder: Path
) -> TokenizerInfo:
    """Write the run's copy of the teacher's tokenizer to `folder`.

    Raises KdscaleError where it does not serve the task.
    """
    info = adopt_tokenizer(teacher_tokenizer, folder, chat=config.chat)
    if task == "masked-lm" and info.mask_id is None:
        raise KdscaleError(
            "The teacher's tokenizer has no mask token, which the task masked-lm needs.",
            "Use a masked language model such as BERT as the teacher.",
        )
    return info


def _manifest(
    config: DataConfig,
    task: Task,
    info: TokenizerInfo,
    sources: dict[str, _Source],
    corpora: dict[str, Corpus],
    splits: dict[str, Any],
) -> dict[str, Any]:
    """Return the manifest."""
    tokenizer = {"kind": config.tokenizer.kind, **info.as_dict()}
    if config.tokenizer.kind == "train":
        tokenizer["requested_vocab_size"] = config.tokenizer.vocab_size
    undecodable = {name: source.table.undecodable for name, source in sources.items()}
    return {
        "format": FORMAT,
        "version": VERSION,
        "task": task,
        "augmented_for": [] if config.augment is None else list(config.augment.of),
        "seq_len": config.seq_len,
        "tokenizer": tokenizer,
        "classes": list(sources["train"].names),
        "sources": {name: source.counts(config) for name, source in sources.items()},
        "splits": splits,
        "undecodable": {name: names for name, names in undecodable.items() if names},
        "unread": {
            name: [each.as_dict() for each in corpus.unread]
            for name, corpus in corpora.items()
            if corpus.unread
        },
    }


def _require_documents(name: str, counts: dict[str, int], chosen: int) -> None:
    """Refuse an evaluation set of which nothing is left."""
    if not chosen:
        raise KdscaleError(
            f"No document is left of the evaluation set {name!r}: {counts | {'chosen': chosen}}.",
            "Use another source (documents that are in the training set too are dropped), or lower "
            "data.min_characters.",
        )
