"""The prepare stage: from configured sources to rows in shards, published by a manifest.

What is read is decided in the driver from hashes (`selection`), reading and tokenising happen on
the cluster (`documents`), and rows are built in the driver (`rows`), which takes a second for every
ten million tokens or so and keeps their order the same on any cluster.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from kdscale.config.data import DataConfig, SourceConfig
from kdscale.data.corpus import Corpus, corpus_identity, find_corpus
from kdscale.data.documents import read_corpus, read_facts, read_texts
from kdscale.data.manifest import FORMAT, MANIFEST, VERSION, write_manifest
from kdscale.data.selection import (
    LAST_PLACE,
    Choice,
    Facts,
    Selection,
    first_sample_place,
    first_training_place,
    select,
)
from kdscale.data.splits import SplitWriter
from kdscale.data.tokenizer import TOKENIZER_FILE, TokenizerInfo, adopt_tokenizer, train_tokenizer
from kdscale.errors import KdscaleError
from kdscale.store import Store, upload_folder

_SPLIT_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


def data_identity(config: DataConfig) -> dict[str, Any]:
    """What fingerprints prepared data: the config, the format version, the state of each source.

    Lists files and packages but reads none. Raises KdscaleError for a missing or empty source, or
    an evaluation set of an unusable name.
    """
    return {
        "format": [FORMAT, VERSION],
        "config": config.model_dump(mode="json"),
        "sources": {name: corpus_identity(source) for name, source in _sources(config).items()},
    }


def prepare(
    config: DataConfig,
    *,
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
    corpora = {name: find_corpus(source) for name, source in _sources(config).items()}
    # A manifest of an earlier run must not stand over a mixture of its files and ours.
    store.delete(MANIFEST)
    progress(0, len(corpora), "reading train")
    train = _read(corpora["train"], config.min_characters)
    places = train.facts.places[train.selection.kept]
    boundary = first_training_place(places, config.validation_share)
    training = train.choose(first=boundary)
    progress(0, len(corpora), f"{config.tokenizer.kind} tokenizer")
    tokenizer_json, info = _tokenizer(config, train, training, teacher_tokenizer, store)
    writer = SplitWriter(config, store, tokenizer_json, info, progress)
    counts = {"train": train.selection.counts}
    splits = {"train": writer.write("train", train.data, training, train.count(training))}
    held_out = train.choose(last=boundary - 1)
    number = train.count(held_out)
    splits["validation"] = writer.write_sample("validation", train.data, held_out, number)
    for done, name in enumerate(config.evaluate, start=1):
        progress(done, len(corpora), f"reading {name}")
        source = _read(corpora[name], config.min_characters, train.digests(training))
        counts[name] = source.selection.counts
        _require_documents(name, source.selection.counts)
        everything = source.choose()
        number = source.count(everything)
        splits[name] = writer.write_sample(name, source.data, everything, number)
    manifest: dict[str, Any] = {
        "format": FORMAT,
        "version": VERSION,
        "row_length": config.row_length,
        "tokenizer": {"kind": config.tokenizer.kind, **info.as_dict()},
        "sources": counts,
        "splits": splits,
    }
    if config.tokenizer.kind == "train":
        manifest["tokenizer"]["requested_vocab_size"] = config.tokenizer.vocab_size
    write_manifest(store, manifest)
    return manifest


@dataclass(frozen=True)
class _Source:
    """A source that has been read."""

    data: Any  # a Ray data set of cleaned documents
    facts: Facts
    selection: Selection

    def choose(self, first: int = 0, last: int = LAST_PLACE) -> Choice:
        """The kept documents whose place is from `first` to `last`."""
        return Choice(first, last, np.sort(self.facts.keys[~self.selection.kept]))

    def count(self, choice: Choice) -> int:
        """How many documents that is."""
        return int(choice.covers(self.facts.keys, self.facts.places).sum())

    def digests(self, choice: Choice) -> np.ndarray:
        """[D, 2] uint64: the digests of those documents."""
        return self.facts.digests[choice.covers(self.facts.keys, self.facts.places)]


def _sources(config: DataConfig) -> dict[str, SourceConfig]:
    """All sources by the name of what is made of them."""
    for name in config.evaluate:
        if name == "train" or not _SPLIT_NAME.fullmatch(name):
            raise KdscaleError(
                f"An evaluation set cannot be called {name!r}.",
                "Use letters, digits, dots, dashes and underscores, and not 'train'.",
            )
    return {"train": config.train, **config.evaluate}


def _read(
    corpus: Corpus, min_characters: int, training_digests: np.ndarray | None = None
) -> _Source:
    data = read_corpus(corpus, min_characters)
    facts = read_facts(data)
    return _Source(data, facts, select(facts, training_digests))


def _tokenizer(
    config: DataConfig,
    train: _Source,
    training: Choice,
    teacher_tokenizer: Path | None,
    store: Store,
) -> tuple[str, TokenizerInfo]:
    """Make the tokenizer and store its folder; its `tokenizer.json` and what is known of it."""
    with TemporaryDirectory(prefix="kdscale-tokenizer-") as name:
        folder = Path(name)
        if config.tokenizer.kind == "train":
            places = train.facts.places[training.covers(train.facts.keys, train.facts.places)]
            first = first_sample_place(places, config.tokenizer.sample_documents)
            texts = read_texts(train.data, train.choose(first=first))
            info = train_tokenizer(texts, config.tokenizer.vocab_size, folder)
        else:
            assert teacher_tokenizer is not None, "the caller has the teacher at hand"
            info = adopt_tokenizer(teacher_tokenizer, folder)
        upload_folder(folder, store, "tokenizer")
        return (folder / TOKENIZER_FILE).read_text(encoding="utf-8"), info


def _require_documents(name: str, counts: dict[str, int]) -> None:
    """An evaluation set must have something left."""
    if not counts["kept"]:
        raise KdscaleError(
            f"No document is left of the evaluation set {name!r}: {counts}.",
            "Use another source (documents that are in the training set too are dropped), or lower "
            "data.min_characters.",
        )
