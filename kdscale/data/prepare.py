"""The prepare stage: from configured sources to rows in shards, published by a manifest.

What is read is decided in the driver from hashes (`selection`), reading and tokenising happen on
the cluster (`documents`), and rows are built in the driver (`rows`), which takes a second for every
ten million tokens or so and keeps their order the same on any cluster.
"""

import re
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from kdscale.config.data import DataConfig, LabelsConfig, SourceConfig
from kdscale.config.task import Task
from kdscale.data.augment import Augmenter, table_paths
from kdscale.data.classes import Classes, find_classes
from kdscale.data.corpus import Corpus, corpus_identity, file_digest, find_corpus
from kdscale.data.documents import Chosen, read_corpus, read_facts, read_labels, read_texts
from kdscale.data.manifest import AUGMENTED, FORMAT, MANIFEST, VERSION, write_manifest
from kdscale.data.messages import plain_text
from kdscale.data.mixture import mix
from kdscale.data.selection import (
    LAST_PLACE,
    Choice,
    Facts,
    Known,
    Selection,
    first_sample_place,
    select,
    step_counts,
)
from kdscale.data.splits import SplitWriter
from kdscale.data.strata import first_training_places, label_bounds
from kdscale.data.tokenizer import TOKENIZER_FILE, TokenizerInfo, adopt_tokenizer, train_tokenizer
from kdscale.errors import KdscaleError
from kdscale.store import Store, upload_folder

_SPLIT_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


def data_identity(config: DataConfig, task: Task = "causal-lm") -> dict[str, Any]:
    """What fingerprints prepared data: task, config, format version, the state of each source.

    Lists files and packages and reads none but tables of synonyms. Raises KdscaleError for a
    missing or empty source, or an evaluation set of an unusable name.
    """
    tables = [] if config.augment is None else table_paths(config.augment)
    files: dict[str, Any] = {}
    if tables:
        files["synonyms"] = {path: file_digest(path) for path in tables}
    fields = config.model_dump(mode="json")
    if config.chat is None:
        # Data that are no conversations are called what they were before there was `chat`.
        del fields["chat"]
    elif config.chat.template_file is not None:
        files["chat_template"] = file_digest(config.chat.template_file)
    return files | {
        "format": [FORMAT, VERSION],
        "task": task,
        "config": fields,
        "sources": {name: _identity(config, name) for name in _sources(config)},
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
) -> dict[str, Any]:
    """Write tokenizer, rows and, last, the manifest under `store`; returns it. Needs a running Ray.

    `progress(done, total, note)` counts sources read, then the documents of each split. What is
    written follows from the config, the sources and the teacher's tokenizer. There is no seed: the
    held-out documents should be the same for every seed, and all order is left to the samplers.
    Safe to run again after it was killed. Raises KdscaleError for what the user can mend.
    """
    corpora = {name: find_corpus(*sources) for name, sources in _sources(config).items()}
    augmenter = None if config.augment is None else Augmenter(config.augment)
    # A manifest of an earlier run must not stand over a mixture of its files and ours.
    store.delete(MANIFEST)
    progress(0, len(corpora), "reading train")
    train = _read_training(corpora["train"], config)
    first = train.first_training_places(config.validation_share)
    training = train.choose(first=first)
    progress(0, len(corpora), f"{config.tokenizer.kind} tokenizer")
    tokenizer_json, info = _tokenizer(config, task, train, training, teacher_tokenizer, store)
    writer = SplitWriter(task, config, store, tokenizer_json, info, progress)
    counts = {"train": train.counts(config)}
    labelled = train.with_label_share(training, config.labels)
    splits = {"train": writer.write("train", train.data, labelled, train.count(training))}
    if augmenter is not None:
        varied = replace(labelled, augmenter=augmenter)
        number = train.count(training) * augmenter.copies
        splits[AUGMENTED] = writer.write(AUGMENTED, train.data, varied, number)
    held_out = train.choose(last=first - np.uint64(1), known=bool(train.names))
    number = train.count(held_out)
    splits["validation"] = writer.write_sample("validation", train.data, held_out, number)
    for done, name in enumerate(config.evaluate, start=1):
        progress(done, len(corpora), f"reading {name}")
        source = _read(corpora[name], config, train.classes, train.known(training))
        counts[name] = source.counts(config)
        everything = source.choose(known=bool(train.names))
        number = source.count(everything)
        _require_documents(name, source.selection.counts | {"chosen": number})
        splits[name] = writer.write_sample(name, source.data, everything, number)
    manifest = _manifest(config, task, info) | {
        "classes": list(train.names),
        "sources": counts,
        "splits": splits,
    }
    write_manifest(store, manifest)
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
        "row_length": config.row_length,
        "tokenizer": tokenizer,
    }


@dataclass(frozen=True)
class _Source:
    """A source that has been read."""

    data: Any  # a Ray data set of cleaned documents
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
        choice = Choice(first, last, np.sort(self.facts.keys[~self.selection.kept]))
        return Chosen(choice, self.classes)

    def with_label_share(self, chosen: Chosen, config: LabelsConfig | None) -> Chosen:
        """The same documents, with the labels of a share of them alone."""
        if config is None or config.share == 1:
            return chosen
        covered = self._covered(chosen)
        places, labels = self.facts.places[covered], self.facts.labels[covered]
        bounds = label_bounds(places, labels, len(self.names), config.share)
        return replace(chosen, label_bounds=bounds)

    def _covered(self, chosen: Chosen) -> np.ndarray:
        """[N] bool."""
        facts = self.facts
        return chosen.choice.covers(facts.keys, facts.places, facts.labels)

    def count(self, chosen: Chosen) -> int:
        """How many documents that is."""
        return int(self._covered(chosen).sum())

    def places(self, chosen: Chosen) -> np.ndarray:
        """[D] uint64: the places of those documents."""
        return self.facts.places[self._covered(chosen)]

    def known(self, chosen: Chosen) -> Known:
        """What other documents are compared with, of those."""
        covered, bands = self._covered(chosen), self.facts.bands
        return Known(self.facts.digests[covered], None if bands is None else bands[covered])

    def counts(self, config: DataConfig) -> dict[str, Any]:
        """What became of the source's documents, for the manifest."""
        steps = step_counts(self.facts, [step.kind for step in config.cleaning])
        mixture = [asdict(share) for share in self.selection.mixture]
        more = {"mixture": mixture} if mixture else {}
        return self.selection.counts | {"steps": steps} | more


def _sources(config: DataConfig) -> dict[str, tuple[SourceConfig, ...]]:
    """All sources by the name of what is made of them."""
    for name in config.evaluate:
        if name == "train" or not _SPLIT_NAME.fullmatch(name):
            raise KdscaleError(
                f"An evaluation set cannot be called {name!r}.",
                "Use letters, digits, dots, dashes and underscores, and not 'train'.",
            )
    return config.sources


def _read_training(corpus: Corpus, config: DataConfig) -> _Source:
    """The training source, which is also where the classes are found."""
    data, labels = read_corpus(corpus, config), config.labels
    classes = None if labels is None else find_classes(labels, read_labels(data))
    facts = read_facts(data, classes)
    selection = select(facts)
    if isinstance(config.train, tuple):
        selection = mix(selection, facts, config.train)
    return _Source(data, facts, selection, classes)


def _read(corpus: Corpus, config: DataConfig, classes: Classes | None, training: Known) -> _Source:
    data = read_corpus(corpus, config)
    facts = read_facts(data, classes)
    return _Source(data, facts, select(facts, training), classes)


def _tokenizer(
    config: DataConfig,
    task: Task,
    train: _Source,
    training: Chosen,
    teacher_tokenizer: Path | None,
    store: Store,
) -> tuple[str, TokenizerInfo]:
    """Make the tokenizer and store its folder; its `tokenizer.json` and what is known of it."""
    with TemporaryDirectory(prefix="kdscale-tokenizer-") as name:
        folder = Path(name)
        if config.tokenizer.kind == "train":
            first = first_sample_place(train.places(training), config.tokenizer.sample_documents)
            sample = np.maximum(training.choice.first, np.uint64(first))
            texts = read_texts(train.data, train.choose(first=sample))
            texts = texts if config.chat is None else map(plain_text, texts)
            masks, size = task == "masked-lm", config.tokenizer.vocab_size
            info = train_tokenizer(texts, size, folder, masks=masks, chat=config.chat)
        else:
            assert teacher_tokenizer is not None, "the caller has the teacher at hand"
            info = adopt_tokenizer(teacher_tokenizer, folder, chat=config.chat)
            if task == "masked-lm" and info.mask_id is None:
                raise KdscaleError(
                    "The teacher's tokenizer has no mask token, which the task masked-lm needs.",
                    "Use a masked language model such as BERT as the teacher.",
                )
        upload_folder(folder, store, "tokenizer")
        return (folder / TOKENIZER_FILE).read_text(encoding="utf-8"), info


def _require_documents(name: str, counts: dict[str, int]) -> None:
    """An evaluation set must have something left."""
    if not counts["chosen"]:
        raise KdscaleError(
            f"No document is left of the evaluation set {name!r}: {counts}.",
            "Use another source (documents that are in the training set too are dropped), or lower "
            "data.min_characters.",
        )
