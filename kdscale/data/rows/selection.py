"""Which documents are kept, held out, or train the tokenizer: decided from hashes, not from texts.

The driver holds 33 bytes of a document, and some 50 more while repetitions are looked for, so a
corpus of a hundred million documents fits in its memory.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from kdscale.data.cleaning.minhash import first_of_alike
from kdscale.data.cleaning.normalise import FIRST_STEP, Status
from kdscale.data.rows.classes import UNKNOWN_LABEL
from kdscale.errors import KdscaleError

LAST_PLACE = np.uint64(2**64 - 1)


@dataclass(frozen=True)
class Facts:
    """What reading found out about the N documents of a source, in their order."""

    places: np.ndarray  # [N] uint64: `name_hash` of the name
    digests: np.ndarray  # [N, 2] uint64: the 16 bytes of `text_digest`
    status: np.ndarray  # [N] uint8: a Status
    labels: np.ndarray  # [N] int32: the number of the class, -1 where none is known
    changed: np.ndarray  # [N] uint32: a bit for each step of cleaning that changed the document
    bands: np.ndarray | None = None  # [N, bands] uint64, where near duplicates are looked for
    undecodable: list[str] = field(default_factory=list)  # names of the first that are so
    # For mixtures:
    sizes: np.ndarray | None = None  # [N] int64: UTF-8 bytes
    sources: np.ndarray | None = None  # [N] uint32: the number of the source in its mixture


def no_facts(count: int) -> Facts:
    """Facts of `count` documents that are not known yet: without classes, changes and bands."""
    return Facts(
        places=np.zeros(count, np.uint64),
        digests=np.zeros((count, 2), np.uint64),
        status=np.zeros(count, np.uint8),
        labels=np.full(count, UNKNOWN_LABEL, np.int32),
        changed=np.zeros(count, np.uint32),
    )


@dataclass(frozen=True)
class Choice:
    """The documents from place `first` to place `last` (both included).

    The places are those of a document's class: entry 0 for documents without one, entry n + 1 for
    class n. Without classes there is one entry.
    """

    first: np.ndarray  # [1 + classes] uint64
    last: np.ndarray  # [1 + classes] uint64

    def covers(self, places: np.ndarray, labels: np.ndarray) -> np.ndarray:
        """[N] bool, from the [N] places (uint64) and labels (int) of documents."""
        if len(self.first) == 1:
            return (places >= self.first[0]) & (places <= self.last[0])
        return (places >= self.first[labels + 1]) & (places <= self.last[labels + 1])


@dataclass(frozen=True)
class Known:
    """What the documents of an evaluation set are compared with: those that train."""

    digests: np.ndarray  # [M, 2] uint64
    bands: np.ndarray | None  # [M, bands] uint64


@dataclass(frozen=True)
class SourceShare:
    """What became of one source of a mixture, for the manifest."""

    name: str
    weight: float
    read: int
    usable: int  # documents that are left of cleaning and the search for duplicates
    kept: int  # of these, in the mixture
    bytes: int  # UTF-8, of what was kept


@dataclass(frozen=True)
class Selection:
    """The documents of a source that go on. `counts` and `mixture` go to the manifest."""

    kept: np.ndarray  # [N] bool
    counts: dict[str, int]
    mixture: tuple[SourceShare, ...] = ()  # of several sources


def first_of_each(digests: np.ndarray) -> np.ndarray:
    """[N] bool: True at the first of each set of equal rows of `digests` ([N, 2])."""
    # lexsort is stable: among equals the first in the data comes first.
    order = np.lexsort((digests[:, 1], digests[:, 0]))
    ordered = digests[order]
    new = np.ones(len(digests), bool)
    new[1:] = (ordered[1:] != ordered[:-1]).any(1)
    first = np.zeros(len(digests), bool)
    first[order[new]] = True
    return first


def select(facts: Facts, training: Known | None = None) -> Selection:
    """Keep the readable, long enough, first-of-its-text documents, and where near duplicates are
    looked for the first of those that are alike.

    Documents that are among those of `training`, or alike, are dropped too: they would leak from
    training into evaluation.
    """
    readable = np.flatnonzero(facts.status == Status.KEPT)
    digests = facts.digests[readable]
    unique = first_of_each(digests)
    leaked = np.zeros(len(readable), bool)
    if training is not None:
        known = len(training.digests)
        fresh = first_of_each(np.concatenate([training.digests, digests]))[known:]
        leaked = unique & ~fresh
    near = np.zeros(len(readable), bool)
    if facts.bands is not None:
        if training is not None and training.bands is not None:
            for own, of in zip(facts.bands.T, training.bands.T, strict=True):
                leaked |= unique & np.isin(own[readable], of)
        alone = np.flatnonzero(unique & ~leaked)
        near[alone[~first_of_alike(facts.bands, readable[alone])]] = True
    kept = np.zeros(len(facts.places), bool)
    kept[readable[unique & ~leaked & ~near]] = True
    counts = {
        "read": len(facts.places),
        "undecodable": int((facts.status == Status.UNDECODABLE).sum()),
        "dropped_short": int((facts.status == Status.SHORT).sum()),
        "dropped_duplicate": int((~unique).sum()),
        "dropped_near_duplicate": int(near.sum()),
        "leaked": int(leaked.sum()),
        "kept": int(kept.sum()),
    }
    return Selection(kept, counts)


def step_counts(facts: Facts, steps: Sequence[str]) -> list[dict[str, Any]]:
    """What each of the configured steps did, by its kind: documents dropped and changed."""
    return [
        {
            "kind": kind,
            "dropped": int((facts.status == FIRST_STEP + number).sum()),
            "changed": int((facts.changed >> np.uint32(number) & np.uint32(1)).sum()),
        }
        for number, kind in enumerate(steps)
        if kind != "near_duplicates"
    ]


def first_training_place(places: np.ndarray, validation_share: float) -> int:
    """Documents whose place is below the answer are held out; both sides get at least one.

    `places` are the [N] uint64 places of the documents kept. KdscaleError for fewer than two.
    """
    if len(np.unique(places)) < 2:
        raise KdscaleError(
            f"{len(places)} documents are left of data.train: training and validation need one.",
            "Give more documents, or lower data.min_characters.",
        )
    threshold = int(validation_share * 2.0**64)
    return min(max(threshold, int(places.min()) + 1), int(places.max()))


def first_sample_place(training_places: np.ndarray, documents: int) -> int:
    """The training documents from this place on are `documents` many, or all if there are fewer."""
    if len(training_places) <= documents:
        return int(training_places.min())
    return int(np.partition(training_places, -documents)[-documents])
