"""A sequence of tokens with the distributions that another tool kept of it, and its readers."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain
from typing import Any, NamedTuple, Protocol

import numpy as np

from kdscale.errors import KdscaleError

NO_ID = -1
"""Stands in `Sequence.ids` where a position lists fewer ids than others."""


@dataclass(frozen=True)
class Sequence:
    """One record of a source: n tokens, and distributions of m consecutive ones of them.

    Entry j is the distribution of token `first + j` given the tokens before it; entries beyond the
    last token are ignored. A value is a log-probability, a logit or a probability, as the import
    was told; where `ids` is NO_ID it means nothing.
    """

    where: str  # file and row, for messages
    tokens: np.ndarray  # [n] int64
    ids: np.ndarray  # [m, K] int64
    values: np.ndarray  # [m, K] float64
    first: int
    segments: np.ndarray | None = None  # [n] int64: number of each token's document, 0 is padding
    is_target: np.ndarray | None = None  # [n] bool: tokens that may be targets; None: all


class Reader(Protocol):
    """A source in one layout. Reading it again gives the same sequences in the same order."""

    @property
    def layout(self) -> str:
        """Name of the layout, for people."""
        ...

    @property
    def values(self) -> str:
        """Default meaning of a value: `logprobs`, `probs` or `logits`."""
        ...

    @property
    def tolerance(self) -> float:
        """Mass above 1 that the rounding of the layout's values can bring."""
        ...

    @property
    def files(self) -> list[tuple[str, str]]:
        """(store root, key) of all files that are read."""
        ...

    @property
    def options(self) -> dict[str, Any]:
        """Choices beside the files that the sequences depend on, as JSON values."""
        ...

    def sequences(self) -> Iterator[Sequence]:
        """Yield all sequences; raises KdscaleError where one cannot be read."""
        ...


class Ragged(NamedTuple):
    """Lists of different lengths, one after the other."""

    flat: np.ndarray  # [sum of counts]
    counts: np.ndarray  # [m] int64

    @property
    def width(self) -> int:
        """Return the one length of all lists, -1 where they differ."""
        return int(self.counts[0]) if len(set(self.counts.tolist())) == 1 else -1

    def padded(self, fill: float, kind: type) -> np.ndarray:
        """Return [m, longest], `fill` behind the end of shorter lists."""
        longest = int(self.counts.max(initial=0))
        found: np.ndarray = np.full((len(self.counts), longest), fill, kind)
        found[np.arange(longest) < self.counts[:, None]] = self.flat
        return found


def ragged(lists: Iterable[Any]) -> Ragged:
    """Return a list of lists of numbers as `Ragged`; None counts as an empty list."""
    rows = [row or () for row in lists]
    counts = np.array([len(row) for row in rows], np.int64)
    return Ragged(np.array(list(chain.from_iterable(rows)), np.float64), counts)


def sequence_from_lists(
    where: str,
    tokens: np.ndarray,
    ids: Ragged,
    values: Ragged,
    first: int,
    segments: np.ndarray | None = None,
    is_target: np.ndarray | None = None,
) -> Sequence:
    """Return the sequence of ids and values that come as lists.

    KdscaleError where they do not belong together.
    """
    if not np.array_equal(ids.counts, values.counts):
        same = min(len(ids.counts), len(values.counts))
        differing = np.flatnonzero(ids.counts[:same] != values.counts[:same])
        at = int(differing[0]) if len(differing) else same
        have = [int(each.counts[at]) if at < len(each.counts) else 0 for each in (ids, values)]
        raise KdscaleError(
            f"{where}: {have[0]} ids and {have[1]} values at entry {at} "
            f"({len(ids.counts)} entries of ids, {len(values.counts)} of values).",
            "Write as many values as ids at every position.",
        )
    return Sequence(
        where,
        tokens,
        ids.padded(NO_ID, np.int64),
        values.padded(-np.inf, np.float64),
        first,
        segments,
        is_target,
    )


def first_token(where: str, tokens: int, entries: int, *, about_next: bool) -> int:
    """Return the token that entry 0 is about.

    Fewer entries than tokens end at the last token: m = n - 1 where the first token has none, and
    m the length of an answer where only that was scored. As many entries as tokens are about the
    token after (`about_next`), or about their own. KdscaleError where there are more.
    """
    if entries > tokens:
        raise KdscaleError(
            f"{where}: {entries} entries for {tokens} tokens.",
            "Give the tokens that the teacher saw, prompt and answer, in the column of tokens.",
        )
    return int(about_next) if entries == tokens else tokens - entries
