"""Choice of documents: kept, held out, in the mixture, or for the tokenizer; from hashes alone.

A document's rank is a hash of its name. Ranges of ranks, for each class, decide what is held out
and what trains, so that rare classes are not lost to chance and every choice stays nearly as it is
when documents are added. Mixtures repeat nothing, since a cache holds a sequence once: they are the
largest in which each source has its share of the text.

The driver holds 33 bytes a document, and some 50 more while duplicates are looked for: a corpus of
a hundred million documents fits in its memory.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from kdscale.config.data import SourceConfig, WeightedSource
from kdscale.data.cleaning.cleaner import FIRST_STEP, Status
from kdscale.data.cleaning.minhash import first_of_alike
from kdscale.data.rows.classes import UNKNOWN_LABEL
from kdscale.errors import KdscaleError
from kdscale.utils.splitmix import splitmix64

LAST_RANK = np.uint64(2**64 - 1)


@dataclass(frozen=True)
class DocumentTable:
    """Facts about the N documents of a source, in their order."""

    ranks: np.ndarray  # [N] uint64: `name_hash` of the name
    digests: np.ndarray  # [N, 2] uint64: the 16 bytes of `text_digest`
    status: np.ndarray  # [N] uint8: a Status
    labels: np.ndarray  # [N] int32: the number of the class, -1 where none is known
    changed: np.ndarray  # [N] uint32: a bit for each step of cleaning that changed the document
    bands: np.ndarray | None = None  # [N, bands] uint64, where near duplicates are looked for
    undecodable: list[str] = field(default_factory=list)  # the first names
    # For mixtures:
    sizes: np.ndarray | None = None  # [N] int64: UTF-8 bytes
    sources: np.ndarray | None = None  # [N] uint32: the number of the source in its mixture


def empty_table(count: int) -> DocumentTable:
    """Return a table of `count` documents, to be filled."""
    return DocumentTable(
        ranks=np.zeros(count, np.uint64),
        digests=np.zeros((count, 2), np.uint64),
        status=np.zeros(count, np.uint8),
        labels=np.full(count, UNKNOWN_LABEL, np.int32),
        changed=np.zeros(count, np.uint32),
    )


@dataclass(frozen=True)
class DedupIndex:
    """Hashes of the training documents, which evaluation documents must not repeat."""

    digests: np.ndarray  # [M, 2] uint64
    bands: np.ndarray | None  # [M, bands] uint64


@dataclass(frozen=True)
class SourceShare:
    """Share of one source in a mixture, for the manifest."""

    name: str
    weight: float
    read: int
    usable: int  # left after cleaning and deduplication
    kept: int  # of these, in the mixture
    bytes: int  # UTF-8, of what was kept


@dataclass(frozen=True)
class FilterResult:
    """Documents of a source that are left; `counts` and `mixture` go to the manifest."""

    kept: np.ndarray  # [N] bool
    counts: dict[str, int]
    mixture: tuple[SourceShare, ...] = ()  # where there are several sources


def first_of_each(digests: np.ndarray) -> np.ndarray:
    """Return [N] bool: True at the first of each set of equal rows of `digests` ([N, 2])."""
    # lexsort is stable: among equals the first in the data comes first.
    order = np.lexsort((digests[:, 1], digests[:, 0]))
    ordered = digests[order]
    new = np.ones(len(digests), bool)
    new[1:] = (ordered[1:] != ordered[:-1]).any(1)
    first = np.zeros(len(digests), bool)
    first[order[new]] = True
    return first


def filter_documents(table: DocumentTable, training: DedupIndex | None = None) -> FilterResult:
    """Keep documents that decode, are long enough and are the first of their (near) duplicates.

    Those that repeat a document of `training` are dropped too: they would leak into evaluation.
    """
    usable = np.flatnonzero(table.status == Status.KEPT)
    digests = table.digests[usable]
    unique = first_of_each(digests)
    leaked = np.zeros(len(usable), bool)
    if training is not None:
        known = len(training.digests)
        fresh = first_of_each(np.concatenate([training.digests, digests]))[known:]
        leaked = unique & ~fresh
    near = np.zeros(len(usable), bool)
    if table.bands is not None:
        if training is not None and training.bands is not None:
            for own, others in zip(table.bands.T, training.bands.T, strict=True):
                leaked |= unique & np.isin(own[usable], others)
        rest = np.flatnonzero(unique & ~leaked)
        near[rest[~first_of_alike(table.bands, usable[rest])]] = True
    kept = np.zeros(len(table.ranks), bool)
    kept[usable[unique & ~leaked & ~near]] = True
    counts = {
        "read": len(table.ranks),
        "undecodable": int((table.status == Status.UNDECODABLE).sum()),
        "dropped_short": int((table.status == Status.SHORT).sum()),
        "dropped_duplicate": int((~unique).sum()),
        "dropped_near_duplicate": int(near.sum()),
        "leaked": int(leaked.sum()),
        "kept": int(kept.sum()),
    }
    return FilterResult(kept, counts)


def step_counts(table: DocumentTable, steps: Sequence[str]) -> list[dict[str, Any]]:
    """Return how many documents each cleaning step dropped and changed, by its kind."""
    return [
        {
            "kind": kind,
            "dropped": int((table.status == FIRST_STEP + number).sum()),
            "changed": int((table.changed >> np.uint32(number) & np.uint32(1)).sum()),
        }
        for number, kind in enumerate(steps)
        if kind != "near_duplicates"
    ]


@dataclass(frozen=True)
class HashRange:
    """Ranks `first` to `last` (both included) of each class.

    Entry 0 is for documents without a class, entry n + 1 for class n; one entry without classes.
    """

    first: np.ndarray  # [1 + classes] uint64
    last: np.ndarray  # [1 + classes] uint64

    def covers(self, ranks: np.ndarray, labels: np.ndarray) -> np.ndarray:
        """Return [N] bool from the [N] ranks (uint64) and labels (int) of documents."""
        at = labels + 1 if len(self.first) > 1 else 0
        return (ranks >= self.first[at]) & (ranks <= self.last[at])


def first_training_ranks(
    ranks: np.ndarray, labels: np.ndarray, classes: tuple[str, ...], validation_share: float
) -> np.ndarray:
    """Return [1 + classes] uint64: documents of a class below its rank are held out.

    Of each class that is the share with the lowest ranks, to the document; documents of unknown
    class are not held out. `ranks` [N] uint64 and `labels` [N] are those of the documents kept.
    Without classes the hash alone decides. Raises KdscaleError for fewer than two documents (of a
    class).
    """
    if not classes:
        return np.array([first_training_rank(ranks, validation_share)], np.uint64)
    first = np.zeros(1 + len(classes), np.uint64)
    for number, name in enumerate(classes):
        own = np.sort(ranks[labels == number])
        if len(own) < 2:
            raise KdscaleError(
                f"The class {name!r} has {len(own)} documents: training and validation need one "
                "each.",
                "Give more documents of it, or leave it out with data.labels.classes.",
            )
        held_out = min(max(1, round(validation_share * len(own))), len(own) - 1)
        first[number + 1] = own[held_out]
    return first


def first_training_rank(ranks: np.ndarray, validation_share: float) -> int:
    """Return the rank below which documents are held out; both sides get at least one."""
    if len(np.unique(ranks)) < 2:
        raise KdscaleError(
            f"{len(ranks)} documents are left of data.train: training and validation need one.",
            "Give more documents, or lower data.min_characters.",
        )
    threshold = int(validation_share * 2.0**64)
    return min(max(threshold, int(ranks.min()) + 1), int(ranks.max()))


def first_sample_rank(training_ranks: np.ndarray, documents: int) -> int:
    """Return the rank from which on there are `documents` training documents, or all."""
    if len(training_ranks) <= documents:
        return int(training_ranks.min())
    return int(np.partition(training_ranks, -documents)[-documents])


def label_bounds(ranks: np.ndarray, labels: np.ndarray, classes: int, share: float) -> np.ndarray:
    """Return [1 + classes] uint64, for `used_labels`: bounds that keep a share of the labels.

    Of each class that is `share` of the documents, but at least one. `ranks` [N] uint64 and
    `labels` [N] are those of the documents.
    """
    bounds = np.full(1 + classes, LAST_RANK)
    if share == 1:
        return bounds
    mixed = rehash(ranks)
    for number in range(classes):
        own = np.sort(mixed[labels == number])
        if len(own):
            bounds[number + 1] = own[max(1, round(share * len(own))) - 1]
    return bounds


def used_labels(ranks: np.ndarray, labels: np.ndarray, bounds: np.ndarray) -> np.ndarray:
    """Return the `labels` [N] int32 of documents at `ranks` [N], -1 where one is not used."""
    used = rehash(ranks) <= bounds[labels + 1]
    return np.where(used, labels, UNKNOWN_LABEL).astype(np.int32)


def source_name(source: SourceConfig) -> str:
    """Return the name of a source in messages."""
    return source.path or source.kind


def mixture_bytes(totals: Sequence[float], weights: Sequence[float]) -> list[float]:
    """Return the bytes of each source in the largest mixture with the shares of `weights`.

    `totals` [S] are the bytes of the sources.
    """
    share = np.asarray(weights, float) / np.sum(weights)
    whole = np.min(np.asarray(totals, float) / share)
    return [float(part) for part in share * whole]


def mix(
    result: FilterResult, table: DocumentTable, sources: Sequence[WeightedSource]
) -> FilterResult:
    """Keep of `result` the documents of the mixture of `sources`, whose documents `table` has.

    Of a source with more text than its share, the documents with the highest rehashed ranks are
    left out. Raises KdscaleError where nothing is left of a source.
    """
    numbers = table.sources
    assert numbers is not None
    assert table.sizes is not None
    kept = np.zeros(len(numbers), bool)
    own = [np.flatnonzero(result.kept & (numbers == each)) for each in range(len(sources))]
    totals = [int(table.sizes[documents].sum()) for documents in own]
    for source, total in zip(sources, totals, strict=True):
        if not total:
            raise KdscaleError(
                f"No document is left of {source_name(source)!r}, a source of data.train.",
                "Leave it out of the mixture, or look at it with `kdscale data preview`: documents "
                "that an earlier source has too are dropped.",
            )
    wanted = mixture_bytes(totals, [source.weight for source in sources])
    shares = []
    for number, (source, documents) in enumerate(zip(sources, own, strict=True)):
        # Hashed twice: the same hash once chooses whose labels are used.
        order = np.argsort(rehash(rehash(table.ranks[documents])), kind="stable")
        sums = np.cumsum(table.sizes[documents][order])
        # The source that limits the mixture is in it whole, whatever was rounded.
        count = max(1, int(np.searchsorted(sums, wanted[number] + 0.5, side="right")))
        chosen = documents[order[:count]]
        kept[chosen] = True
        shares.append(
            SourceShare(
                name=source_name(source),
                weight=source.weight,
                read=int((numbers == number).sum()),
                usable=len(documents),
                kept=count,
                bytes=int(table.sizes[chosen].sum()),
            )
        )
    counts = result.counts | {"kept": int(kept.sum())}
    return replace(result, kept=kept, counts=counts, mixture=tuple(shares))


def rehash(ranks: np.ndarray) -> np.ndarray:
    """Return [N] uint64: another hash, independent of what the ranks themselves decide."""
    return splitmix64(ranks.astype(np.uint64))
