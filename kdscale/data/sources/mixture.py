"""Mixtures of sources: which documents stay so that every source has its share of the text.

Nothing is repeated: a cache holds a row once, and a student may see it as often as it likes. So the
mixture is the largest one that has each source's share, and of a source with more text than that a
part is left out, chosen by a hash of the documents' names. It stays nearly as it is when documents
are added.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from kdscale.config.data import SourceConfig, WeightedSource
from kdscale.data.rows.selection import Facts, Selection, SourceShare
from kdscale.data.rows.stratify import rehash
from kdscale.errors import KdscaleError


def source_name(source: SourceConfig) -> str:
    """How a source is called to a reader."""
    return source.path or source.kind


def mixture_bytes(totals: Sequence[float], weights: Sequence[float]) -> list[float]:
    """How much of each source's `totals` [S] is in the largest mixture in which its share is that
    of its weight [S]."""
    share = np.asarray(weights, float) / np.sum(weights)
    whole = np.min(np.asarray(totals, float) / share)
    return [float(part) for part in share * whole]


def mix(selection: Selection, facts: Facts, sources: Sequence[WeightedSource]) -> Selection:
    """Of the documents that `selection` keeps those of the mixture of `sources`, whose documents
    `facts` are about. KdscaleError where nothing is left of a source.
    """
    numbers = facts.sources
    assert numbers is not None
    assert facts.sizes is not None
    kept = np.zeros(len(numbers), bool)
    own = [np.flatnonzero(selection.kept & (numbers == each)) for each in range(len(sources))]
    totals = [int(facts.sizes[documents].sum()) for documents in own]
    for source, total in zip(sources, totals, strict=True):
        if not total:
            raise KdscaleError(
                f"No document is left of {source_name(source)!r}, a source of data.train.",
                "Leave it out of the mixture, or look at it with `kdscale data preview`: documents "
                "that an earlier source has too are dropped.",
            )
    wanted = mixture_bytes(totals, [source.weight for source in sources])
    shares = []
    for number, source in enumerate(sources):
        documents = own[number]
        # Twice: the same hash once chooses whose labels are used.
        falls = np.argsort(rehash(rehash(facts.places[documents])), kind="stable")
        sums = np.cumsum(facts.sizes[documents][falls])
        # The one that limits the mixture is in it whole, whatever was rounded.
        count = max(1, int(np.searchsorted(sums, wanted[number] + 0.5, side="right")))
        chosen = documents[falls[:count]]
        kept[chosen] = True
        shares.append(
            SourceShare(
                name=source_name(source),
                weight=source.weight,
                read=int((numbers == number).sum()),
                usable=len(documents),
                kept=count,
                bytes=int(facts.sizes[chosen].sum()),
            )
        )
    return replace(
        selection,
        kept=kept,
        counts=selection.counts | {"kept": int(kept.sum())},
        mixture=tuple(shares),
    )
