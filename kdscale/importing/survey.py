"""Survey of a set: every sequence read and checked once, before anything is written."""

from array import array
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

from kdscale.errors import KdscaleError
from kdscale.importing.alignment import Alignment
from kdscale.importing.checks import Entries, Meaning, checked
from kdscale.importing.rows import Outline, RowCounter, outline, pieces
from kdscale.importing.sequence import Reader, Sequence

# Of every position; a teacher's own top k leave more than this to others now and then.
_RENORMALISED = 0.999
_ENOUGH = 64
_MOST_SCALED = 0.25
_REPORT_EVERY = 64

Progress = Callable[[int, int, str], None]


@dataclass(frozen=True)
class Survey:
    """Figures of a set, as it will be imported."""

    layout: str
    meaning: Meaning
    sequences: int
    duplicates: int
    without_target: int
    split: int
    tokens: int
    targets: int
    seq_len: int
    rows: int
    k: int
    mean_mass: float
    least_mass: float
    scaled: int
    """Positions whose values had a mass above 1 that no rounding explains."""

    alignment: dict[str, Any]

    def as_dict(self) -> dict[str, Any]:
        """Return plain values, for the cache's facts."""
        found = {name: value for name, value in vars(self).items() if name != "meaning"}
        return found | {
            "values": self.meaning.values,
            "rest": "ghost" if self.meaning.rest_is_known else "unknown",
        }


def distinct(
    reader: Reader, meaning: Meaning, on_duplicate: Callable[[], None] = lambda: None
) -> Iterator[tuple[Sequence, Entries, Outline]]:
    """Yield each sequence once, checked. It remembers their digests, about 110 bytes each."""
    seen: set[bytes] = set()
    for sequence in reader.sequences():
        entries = checked(sequence, meaning)
        found = outline(sequence, entries.about)
        if found.digest in seen:
            on_duplicate()
            continue
        seen.add(found.digest)
        yield sequence, entries, found


def survey(
    reader: Reader,
    meaning: Meaning,
    *,
    seq_len: int | None,
    top_k: int | None,
    pack: bool,
    decide_meaning: bool,
    allow_misaligned: bool,
    progress: Progress,
) -> Survey:
    """Read and check all of a set.

    seq_len, top_k: by default the longest sequence, and the ids of the longest entry.
    decide_meaning: a set whose listed ids always have all the mass was renormalised. Raises
    KdscaleError for what is no distribution, belongs to other tokens, or has no target.
    """
    counts = _Counts()
    alignment = Alignment(meaning.vocab_size)
    lengths = array("q")
    counter = None if seq_len is None else RowCounter(seq_len, pack=pack)
    for sequence, entries, found in distinct(reader, meaning, counts.duplicate):
        alignment.add(sequence.tokens, entries)
        counts.add(found, entries)
        spans = list(pieces(found, seq_len or max(2, len(found.tokens))))
        counts.without_target += not spans
        counts.split += len(spans) > 1 and seq_len is not None and len(found.tokens) > seq_len
        for span in spans:
            lengths.append(len(span)) if counter is None else counter.add(len(span))
        if counts.sequences % _REPORT_EVERY == 0:
            progress(counts.sequences, counts.sequences, "sequences checked")
    if not counts.targets:
        raise KdscaleError(
            f"The set ({reader.layout}) has {counts.sequences} sequences and no target.",
            "Give a set with tokens and distributions of them; masks may leave all of it out.",
        )
    _check_masses(counts)
    alignment.check(allow_misaligned)
    if counter is None:
        seq_len = max(lengths)
        counter = RowCounter(seq_len, pack=pack)
        for length in lengths:
            counter.add(length)
    assert seq_len is not None
    if decide_meaning and counts.positions >= _ENOUGH and counts.least_mass >= _RENORMALISED:
        meaning = replace(meaning, values="renormalised")
    return Survey(
        layout=reader.layout,
        meaning=meaning,
        sequences=counts.sequences,
        duplicates=counts.duplicates,
        without_target=counts.without_target,
        split=counts.split,
        tokens=counts.tokens,
        targets=counts.targets,
        seq_len=seq_len,
        rows=counter.total(),
        k=min(top_k or counts.width, counts.width),
        mean_mass=counts.mass / counts.positions,
        least_mass=counts.least_mass,
        scaled=counts.scaled,
        alignment=alignment.as_dict(),
    )


def _check_masses(counts: "_Counts") -> None:
    """Refuse a set whose masses are above 1 too often for a fit that overshoots."""
    if counts.scaled > _MOST_SCALED * counts.positions:
        raise KdscaleError(
            f"{counts.scaled:,} of {counts.positions:,} distributions have a mass above 1.",
            "Check the compression config: it must be the one that the set was captured with.",
        )


@dataclass
class _Counts:
    """Sums over the sequences so far."""

    sequences: int = 0
    duplicates: int = 0
    without_target: int = 0
    split: int = 0
    tokens: int = 0
    targets: int = 0
    positions: int = 0
    width: int = 0
    scaled: int = 0
    mass: float = 0.0
    least_mass: float = 1.0

    def duplicate(self) -> None:
        """Count a sequence that came before."""
        self.duplicates += 1

    def add(self, found: Outline, entries: Entries) -> None:
        """Count a sequence in."""
        self.sequences += 1
        self.tokens += len(found.tokens)
        self.targets += int(found.scored.sum())
        self.positions += len(entries.about)
        self.scaled += int(entries.scaled.sum())
        self.width = max(self.width, entries.width)
        if len(entries.mass):
            self.mass += float(entries.mass.sum())
            self.least_mass = min(self.least_mass, float(entries.mass.min()))
