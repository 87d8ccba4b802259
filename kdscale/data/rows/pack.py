"""Token documents to rows of T tokens: the heart of the prepare stage, pure numpy.

A document longer than a row becomes windows of T tokens that start every T - overlap tokens; a
window's loss mask leaves out what an earlier window has scored, so that every token of a document
but its first is a target exactly once. Windows that fill a row are cut by one strided view. What is
shorter (short documents and last windows, called pieces) shares rows (best_fit.py): in one pass,
with bounded memory and no knowledge of the corpus.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, fields, replace

import numpy as np
import xxhash

from kdscale.data.rows.best_fit import BestFit
from kdscale.data.rows.classes import UNKNOWN_LABEL
from kdscale.types import Rows

CHUNK_ROWS = 1024
# A piece holds a token and at least one target.
SMALLEST_PIECE = 2

# (tokens, whether each position's next token is a target, UTF-8 bytes a target)
Piece = tuple[np.ndarray, np.ndarray, float]
# (tokens [n] int32, UTF-8 bytes, which tokens are targets [n] bool; None: all but the first)
Document = tuple[np.ndarray, int] | tuple[np.ndarray, int, np.ndarray | None]


@dataclass(frozen=True)
class Layout:
    """Layout of rows. `truncate` keeps a document's first T tokens only, `drop` none of them."""

    seq_len: int
    overlap: int
    truncate: bool
    pack: bool
    pad_id: int
    drop: bool = False


@dataclass
class RowCounts:
    """Outcomes of a split's documents and tokens; a document may be both split and packed.

    `targets` and `bytes` are those of the rows given out: `targets_truncated` and
    `targets_duplicate` are missing from the documents' own. Rows to be classified and masked ones
    lose tokens, not targets, to `targets_truncated`, each token once. Documents that are `long`,
    have no target or are conversations that cannot be rendered leave nothing but a count.
    """

    documents: int = 0
    split: int = 0
    truncated: int = 0
    long: int = 0
    without_target: int = 0
    unrendered: int = 0
    packed: int = 0
    tokens: int = 0
    targets_truncated: int = 0
    targets_duplicate: int = 0
    targets: int = 0
    bytes: float = 0.0
    rows: int = 0
    rows_duplicate: int = 0
    rows_without_target: int = 0
    padding: int = 0


def sample_ids(
    input_ids: np.ndarray,
    segment_ids: np.ndarray,
    loss_mask: np.ndarray,
    labels: np.ndarray | None = None,
) -> np.ndarray:
    """Return [R, 16] uint8: xxh3_128 of each row's content.

    Over ids and segments (little-endian int32), mask (bytes) and labels (int32), where there are
    some. All arrays are [R, T].
    """
    parts = [
        np.ascontiguousarray(input_ids, "<i4"),
        np.ascontiguousarray(segment_ids, "<i4"),
        np.ascontiguousarray(loss_mask, bool),
    ]
    if labels is not None:
        parts.append(np.ascontiguousarray(labels, "<i4"))
    digests = bytearray()
    for row in zip(*parts, strict=True):
        digest = xxhash.xxh3_128()
        for part in row:
            digest.update(part.data)
        digests += digest.digest()
    return np.frombuffer(digests, np.uint8).reshape(len(input_ids), 16)


def concatenate(parts: list[Rows], seq_len: int) -> Rows:
    """Return the rows of all parts in order; `seq_len` gives the shape of none."""
    if not parts:
        return empty_rows(0, seq_len, pad_id=0)
    # Without labels in one part, there are none in any.
    names = [f.name for f in fields(Rows) if getattr(parts[0], f.name) is not None]
    return Rows(**{name: np.concatenate([getattr(part, name) for part in parts]) for name in names})


def empty_rows(count: int, seq_len: int, pad_id: int, *, labelled: bool = False) -> Rows:
    """Return `count` rows of padding with sample ids of zeros; `labelled` ones have labels -1."""
    shape = (count, seq_len)
    return Rows(
        sample_ids=np.zeros((count, 16), np.uint8),
        input_ids=np.full(shape, pad_id, np.int32),
        segment_ids=np.zeros(shape, np.int32),
        loss_mask=np.zeros(shape, bool),
        byte_counts=np.zeros(count, np.float64),
        labels=np.full(shape, UNKNOWN_LABEL, np.int32) if labelled else None,
    )


class RowCollector:
    """Rows of one split on their way out: gives them sample ids and drops repetitions.

    It remembers every sample id in a Python set, about 110 bytes a row: 1 GB for ten million rows.
    """

    def __init__(self, counts: RowCounts, seq_len: int) -> None:
        self._counts = counts
        self._seq_len = seq_len
        self._waiting: list[Rows] = []
        self._waiting_rows = 0
        self._seen: set[bytes] = set()

    def add(self, rows: Rows) -> None:
        """Add rows whose sample ids are not yet computed."""
        self._waiting.append(rows)
        self._waiting_rows += len(rows)

    def drained(self, least: int) -> Iterator[Rows]:
        """Yield the waiting rows that are new, as one chunk, if at least `least` wait."""
        if self._waiting_rows < least:
            return
        sizes = [len(rows) for rows in self._waiting]
        rows = concatenate(self._waiting, self._seq_len)
        self._waiting, self._waiting_rows = [], 0
        ids = sample_ids(rows.input_ids, rows.segment_ids, rows.loss_mask, rows.labels)
        fresh = np.array([self._is_new(each.tobytes()) for each in ids], bool)
        targets = rows.loss_mask.sum(1)
        counts = self._counts
        counts.rows_duplicate += int((~fresh).sum())
        counts.targets_duplicate += int(targets[~fresh].sum())
        counts.targets += int(targets[fresh].sum())
        # A sum of floats depends on how they are grouped: here as the rows came.
        for size, stop in zip(sizes, np.cumsum(sizes).tolist(), strict=True):
            own = slice(stop - size, stop)
            counts.bytes += float(rows.byte_counts[own][fresh[own]].sum())
        named = replace(rows, sample_ids=ids)
        kept = named if fresh.all() else named.take(np.flatnonzero(fresh))
        counts.rows += len(kept)
        counts.padding += int((kept.segment_ids == 0).sum())
        if len(kept):
            yield kept

    def _is_new(self, sample_id: bytes) -> bool:
        if sample_id in self._seen:
            return False
        self._seen.add(sample_id)
        return True


class RowBuilder:
    """Builder of the rows of one split; `counts` is complete after `build`."""

    def __init__(self, layout: Layout) -> None:
        self.counts = RowCounts()
        self._layout = layout
        self._rows = RowCollector(self.counts, layout.seq_len)
        self._open: BestFit[Piece] = BestFit(layout.seq_len, SMALLEST_PIECE)

    def build(self, documents: Iterable[Document]) -> Iterator[Rows]:
        """Yield rows in chunks of about CHUNK_ROWS.

        Rows come in the documents' order, but for those that wait for pieces. A row equal to an
        earlier one is dropped and counted, as is one without a target.
        """
        for document in documents:
            self._add(*document)
            yield from self._rows.drained(CHUNK_ROWS)
        for pieces in self._open.close():
            self._emit_packed(pieces)
        yield from self._rows.drained(1)

    def _add(
        self, tokens: np.ndarray, byte_count: int, is_target: np.ndarray | None = None
    ) -> None:
        """Add one document: windows that fill a row are emitted, the rest becomes a piece."""
        layout, counts = self._layout, self.counts
        length, row = len(tokens), layout.seq_len
        counts.documents += 1
        counts.tokens += length
        if is_target is None:
            assert length >= SMALLEST_PIECE, "a document has its start and its end token"
            is_target = np.ones(length, bool)
        # By position from here on, as in a row: of the next token.
        scored = np.append(is_target[1:], False)
        targets = int(scored.sum())
        if not targets or (length > row and layout.drop):
            self._leave_out(length, targets)
            return
        bytes_per_target = byte_count / targets
        if length > row and layout.truncate:
            counts.truncated += 1
            counts.targets_truncated += int(scored[row - 1 :].sum())
            tokens, scored = tokens[:row], np.append(scored[: row - 1], False)
        elif length > row:
            counts.split += 1
        step = row - layout.overlap
        full = (len(tokens) - row) // step + 1 if len(tokens) >= row else 0
        if full:
            self._emit_windows(tokens, scored, full, step, bytes_per_target)
        # What earlier windows have scored ends before `first`; the rest starts at window `full`.
        start = full * step
        first = start + layout.overlap if full else 1
        if first < len(tokens):
            rest = scored[start:].copy()
            rest[: first - start - 1] = False
            self._place(tokens[start:], rest, bytes_per_target)

    def _leave_out(self, length: int, targets: int) -> None:
        """Count a document that gives no rows."""
        if not length:
            self.counts.unrendered += 1
        elif not targets:
            self.counts.without_target += 1
        else:
            self.counts.long += 1

    def _emit_windows(
        self,
        tokens: np.ndarray,
        scored: np.ndarray,
        count: int,
        step: int,
        bytes_per_target: float,
    ) -> None:
        """Emit the first `count` windows of a document, each as a row."""
        row = self._layout.seq_len
        view, part = np.lib.stride_tricks.sliding_window_view, slice(None, count * step, step)
        rows = empty_rows(count, row, self._layout.pad_id)
        rows.input_ids[:] = view(tokens, row)[part]
        rows.segment_ids[:] = 1
        rows.loss_mask[:, :-1] = view(scored, row)[part, :-1]
        rows.loss_mask[1:, : self._layout.overlap - 1] = False
        rows.byte_counts[:] = rows.loss_mask.sum(1) * bytes_per_target
        used = np.flatnonzero(rows.loss_mask.any(axis=1))
        self.counts.rows_without_target += count - len(used)
        if len(used):
            self._rows.add(rows if len(used) == count else rows.take(used))

    def _place(self, tokens: np.ndarray, scored: np.ndarray, bytes_per_target: float) -> None:
        """Put a piece into the open row that it fills best, or into a new one."""
        piece, length = (tokens, scored, bytes_per_target), len(tokens)
        if not scored.any():
            self.counts.rows_without_target += 1
            return
        if not self._layout.pack:
            self._emit_packed([piece])
            return
        for pieces in self._open.add(piece, length):
            self._emit_packed(pieces)

    def _emit_packed(self, pieces: list[Piece]) -> None:
        """Emit one row from its pieces, each a segment."""
        rows = empty_rows(1, self._layout.seq_len, self._layout.pad_id)
        start = 0
        for segment, (tokens, scored, bytes_per_target) in enumerate(pieces, start=1):
            end = start + len(tokens)
            rows.input_ids[0, start:end] = tokens
            rows.segment_ids[0, start:end] = segment
            rows.loss_mask[0, start:end] = scored
            rows.byte_counts[0] += int(scored.sum()) * bytes_per_target
            start = end
        if len(pieces) > 1:
            self.counts.packed += len(pieces)
        self._rows.add(rows)
