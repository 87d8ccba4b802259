"""The prepare stage: from configured sources to rows in shards, published by a manifest.

What is read is decided in the driver from hashes (`selection`), reading and tokenising happen on
the cluster (`documents`), which keeps what is made in the store until the end (`work`), and rows
are built in the driver (`rows`), which takes a second for every ten million tokens or so and keeps
their order the same on any cluster.
"""

import json
import re
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from kdscale.config import fingerprint
from kdscale.config.data import DataConfig, LabelsConfig, SourceConfig
from kdscale.config.places import without_folders
from kdscale.config.task import Task
from kdscale.data.chat.messages import plain_text
from kdscale.data.chat.template import ChatTemplate, template_to_train
from kdscale.data.cleaning.augment import Augmenter, table_paths
from kdscale.data.documents import Chosen, Documents, read_corpus
from kdscale.data.prepare_checkpoint import WORK, clear_work
from kdscale.data.rows.classes import Classes, find_classes
from kdscale.data.rows.manifest import AUGMENTED, FORMAT, MANIFEST, VERSION, write_manifest
from kdscale.data.rows.selection import (
    LAST_PLACE,
    Choice,
    Facts,
    Known,
    Selection,
    first_sample_place,
    select,
    step_counts,
)
from kdscale.data.rows.splits import SplitWriter
from kdscale.data.rows.stratify import first_training_places, label_bounds, used_labels
from kdscale.data.sources.corpus import Corpus, corpus_identity, file_digest, find_corpus
from kdscale.data.sources.mixture import mix
from kdscale.data.tokenizer import TOKENIZER_FILE, TokenizerInfo, adopt_tokenizer, train_tokenizer
from kdscale.errors import KdscaleError
from kdscale.store import Store, upload_folder

# Of the trained tokenizer, in the work: it is stored.
_TOKENIZER_INFO = "tokenizer.json"
_SPLIT_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


def data_identity(config: DataConfig, task: Task = "causal-lm") -> dict[str, Any]:
    """What fingerprints prepared data: task, config, format version, the state of each source.

    Lists files and packages and reads none but tables of synonyms. Raises KdscaleError for a
    missing or empty source, or an evaluation set of an unusable name.
    """
    tables = [] if config.augment is None else table_paths(config.augment)
    files: dict[str, Any] = {}
    if tables:
        files["synonyms"] = [file_digest(path) for path in tables]
    # Digests stand for the files, so that a folder may be moved.
    fields = without_folders(config).model_dump(mode="json")
    if config.chat is None:
        # Data that are no conversations are called what they were before there was `chat`.
        del fields["chat"]
    else:
        if not config.chat.ignore:
            del fields["chat"]["ignore"]  # For the same reason.
        if config.chat.template_file is not None:
            files["chat_template"] = file_digest(config.chat.template_file)
    return files | {
        "format": [FORMAT, VERSION],
        "task": task,
        "config": fields,
        "sources": {name: _identity(config, name) for name in named_sources(config)},
    }


def _identity(config: DataConfig, name: str) -> Any:
    """Of a source; of each source of a mixture."""
    found = [corpus_identity(source) for source in config.sources[name]]
    return found if name == "train" and isinstance(config.train, tuple) else found[0]


def prepare(
    config: DataConfig,
    *,
    task: Task = "causal-lm",
    store: Store,
    teacher_tokenizer: Path | None,
    progress: Callable[[int, int, str], None],
    identity: str | None = None,
) -> dict[str, Any]:
    """Write tokenizer, rows and, last, the manifest under `store`; returns it. Needs a running Ray.

    `progress(done, total, note)` counts what is read of each source, then the documents of each
    split. What is written follows from the config, the sources and the teacher's tokenizer. There
    is no seed: the held-out documents should be the same for every seed, and all order is left to
    the samplers. Killed and started again, it goes on with what it had cleaned and tokenised, as
    long as config and sources are the same: as long as the `identity` is, by default the
    fingerprint of `data_identity`. Raises KdscaleError for what the user can mend.
    """
    corpora = {name: find_corpus(*sources) for name, sources in named_sources(config).items()}
    augmenter = None if config.augment is None else Augmenter(config.augment)
    # A manifest of an earlier run must not stand over a mixture of its files and ours.
    store.delete(MANIFEST)
    identity = identity or fingerprint(data_identity(config, task))
    clear_work(store, keep=identity)
    work = store.child(f"{WORK}/{identity}")
    adopted = None
    if config.tokenizer.kind == "teacher":
        assert teacher_tokenizer is not None, "the caller has the teacher at hand"
        adopted = _teachers_tokenizer(config, task, teacher_tokenizer, store)
    template = _chat_template(config, None if adopted is None else adopted[1])
    reader = _Reader(config, work, progress, template)
    train = reader.read_training(corpora["train"])
    first = train.first_training_places(config.validation_share)
    training = train.choose(first=first)
    progress(0, 1, f"{config.tokenizer.kind} tokenizer")
    tokenizer_json, info = adopted or _trained_tokenizer(config, task, train, training, store, work)
    writer = SplitWriter(task, config, store, tokenizer_json, info, progress)
    counts = {"train": train.counts(config)}
    undecodable = {"train": train.facts.undecodable}
    labelled = train.with_label_share(training, config.labels)
    splits = {"train": writer.write("train", train.documents, labelled)}
    if augmenter is not None:
        splits[AUGMENTED] = writer.write(AUGMENTED, train.documents, labelled, augmenter)
    held_out = train.choose(last=first - np.uint64(1), known=bool(train.names))
    splits["validation"] = writer.write_sample("validation", train.documents, held_out)
    for name in config.evaluate:
        source = reader.read(name, corpora[name], train.classes, train.known(training))
        counts[name] = source.counts(config)
        undecodable[name] = source.facts.undecodable
        everything = source.choose(known=bool(train.names))
        number = int(everything.covered.sum())
        _require_documents(name, source.selection.counts | {"chosen": number})
        splits[name] = writer.write_sample(name, source.documents, everything)
    manifest = _manifest(config, task, info) | {
        "classes": list(train.names),
        "sources": counts,
        "splits": splits,
        "undecodable": {name: names for name, names in undecodable.items() if names},
        "unread": {
            name: [each.as_dict() for each in corpus.unread]
            for name, corpus in corpora.items()
            if corpus.unread
        },
    }
    write_manifest(store, manifest)
    clear_work(store)
    return manifest


def _manifest(config: DataConfig, task: Task, info: TokenizerInfo) -> dict[str, Any]:
    """What the manifest says besides sources and splits."""
    tokenizer = {"kind": config.tokenizer.kind, **info.as_dict()}
    if config.tokenizer.kind == "train":
        tokenizer["requested_vocab_size"] = config.tokenizer.vocab_size
    return {
        "format": FORMAT,
        "version": VERSION,
        "task": task,
        "augmented_for": [] if config.augment is None else list(config.augment.of),
        "seq_len": config.seq_len,
        "tokenizer": tokenizer,
    }


@dataclass(frozen=True)
class _Source:
    """A source that has been read."""

    documents: Documents
    facts: Facts
    selection: Selection
    classes: Classes | None

    @property
    def names(self) -> tuple[str, ...]:
        """Of the classes; none where documents have no classes."""
        return () if self.classes is None else self.classes.names

    def first_training_places(self, validation_share: float) -> np.ndarray:
        """See `strata`."""
        kept = self.selection.kept
        places, labels = self.facts.places[kept], self.facts.labels[kept]
        return first_training_places(places, labels, self.names, validation_share)

    def choose(
        self,
        first: np.ndarray | None = None,
        last: np.ndarray | None = None,
        *,
        known: bool = False,
    ) -> Chosen:
        """The kept documents whose place is from `first` to `last`, by their class; `known`: only
        those whose class is known."""
        strata = 1 + len(self.names)
        first = np.zeros(strata, np.uint64) if first is None else first
        last = np.full(strata, LAST_PLACE) if last is None else last
        if known:
            # From the last place down to the first there is none.
            first, last = first.copy(), last.copy()
            first[0], last[0] = LAST_PLACE, 0
        facts = self.facts
        covered = self.selection.kept & Choice(first, last).covers(facts.places, facts.labels)
        return Chosen(covered, facts.labels)

    def with_label_share(self, chosen: Chosen, config: LabelsConfig | None) -> Chosen:
        """The same documents, with the labels of a share of them alone."""
        if config is None or config.share == 1:
            return chosen
        places, labels, covered = self.facts.places, self.facts.labels, chosen.covered
        bounds = label_bounds(places[covered], labels[covered], len(self.names), config.share)
        return Chosen(covered, used_labels(places, labels, bounds))

    def known(self, chosen: Chosen) -> Known:
        """What other documents are compared with, of those."""
        covered, bands = chosen.covered, self.facts.bands
        return Known(self.facts.digests[covered], None if bands is None else bands[covered])

    def counts(self, config: DataConfig) -> dict[str, Any]:
        """What became of the source's documents, for the manifest."""
        steps = step_counts(self.facts, [step.kind for step in config.cleaning])
        mixture = [asdict(share) for share in self.selection.mixture]
        more = {"mixture": mixture} if mixture else {}
        return self.selection.counts | {"steps": steps} | more


def named_sources(config: DataConfig) -> dict[str, tuple[SourceConfig, ...]]:
    """All sources by the name of what is made of them. KdscaleError for an unusable name."""
    for name in config.evaluate:
        if name == "train" or not _SPLIT_NAME.fullmatch(name):
            raise KdscaleError(
                f"An evaluation set cannot be called {name!r}.",
                "Use letters, digits, dots, dashes and underscores, and not 'train'.",
            )
    return config.sources


class _Reader:
    """Reads the sources of a config."""

    def __init__(
        self,
        config: DataConfig,
        work: Store,
        progress: Callable[[int, int, str], None],
        template: ChatTemplate | None,
    ) -> None:
        self._config = config
        self._template = template
        self._work = work
        self._progress = progress

    def read_training(self, corpus: Corpus) -> _Source:
        """The training source, which is also where the classes are found."""
        documents, labels = self._documents("train", corpus), self._config.labels
        classes = None if labels is None else find_classes(labels, documents.labels())
        facts = documents.facts(classes)
        selection, train = select(facts), self._config.train
        if isinstance(train, tuple):
            sizes, sources = documents.sizes(), documents.sources(corpus)
            facts = replace(facts, sizes=sizes, sources=sources)
            selection = mix(selection, facts, train)
        return _Source(documents, facts, selection, classes)

    def read(self, name: str, corpus: Corpus, classes: Classes | None, training: Known) -> _Source:
        """Another source, without what is in `training`."""
        documents = self._documents(name, corpus)
        facts = documents.facts(classes)
        return _Source(documents, facts, select(facts, training), classes)

    def _documents(self, name: str, corpus: Corpus) -> Documents:
        def progress(done: int, total: int) -> None:
            self._progress(done, total, f"reading {name}")

        return read_corpus(corpus, self._config, self._work, name, progress, self._template)


def _chat_template(config: DataConfig, adopted: TokenizerInfo | None) -> ChatTemplate | None:
    """The template of conversations, before the tokenizer that is trained."""
    if config.chat is None or adopted is not None:
        return None if adopted is None else adopted.chat
    return template_to_train(config.chat)


def _trained_tokenizer(
    config: DataConfig, task: Task, train: _Source, training: Chosen, store: Store, work: Store
) -> tuple[str, TokenizerInfo]:
    """Train the tokenizer, unless a prepare that was killed has, and store its folder; its
    `tokenizer.json` and what is known of it."""
    if work.exists(_TOKENIZER_INFO):
        info = TokenizerInfo.from_dict(json.loads(work.get(_TOKENIZER_INFO)))
        return store.get(f"tokenizer/{TOKENIZER_FILE}").decode(), info
    places, most = train.facts.places, config.tokenizer.sample_documents
    first = np.uint64(first_sample_place(places[training.covered], most))
    texts = train.documents.texts(training.covered & (places >= first))
    texts = texts if config.chat is None else map(plain_text, texts)
    with TemporaryDirectory(prefix="kdscale-tokenizer-") as name:
        folder, masks, size = Path(name), task == "masked-lm", config.tokenizer.vocab_size
        info = train_tokenizer(texts, size, folder, masks=masks, chat=config.chat)
        encoded = _stored(folder, store)
    work.put(_TOKENIZER_INFO, json.dumps(info.as_dict()).encode())
    return encoded, info


def _teachers_tokenizer(
    config: DataConfig, task: Task, teacher_tokenizer: Path, store: Store
) -> tuple[str, TokenizerInfo]:
    """The same of the teacher's tokenizer."""
    with TemporaryDirectory(prefix="kdscale-tokenizer-") as name:
        info = adopt_for_task(config, task, teacher_tokenizer, Path(name))
        return _stored(Path(name), store), info


def adopt_for_task(
    config: DataConfig, task: Task, teacher_tokenizer: Path, folder: Path
) -> TokenizerInfo:
    """Write what the run takes of the teacher's tokenizer to `folder`. KdscaleError where it does
    not serve."""
    info = adopt_tokenizer(teacher_tokenizer, folder, chat=config.chat)
    if task == "masked-lm" and info.mask_id is None:
        raise KdscaleError(
            "The teacher's tokenizer has no mask token, which the task masked-lm needs.",
            "Use a masked language model such as BERT as the teacher.",
        )
    return info


def _stored(folder: Path, store: Store) -> str:
    """Upload the folder of a tokenizer; its `tokenizer.json`."""
    upload_folder(folder, store, "tokenizer")
    return (folder / TOKENIZER_FILE).read_text(encoding="utf-8")


def _require_documents(name: str, counts: dict[str, int]) -> None:
    """An evaluation set must have something left."""
    if not counts["chosen"]:
        raise KdscaleError(
            f"No document is left of the evaluation set {name!r}: {counts}.",
            "Use another source (documents that are in the training set too are dropped), or lower "
            "data.min_characters.",
        )
