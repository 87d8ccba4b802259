"""A student's sequences over the bytes of its teacher's.

The bytes of a sequence's tokens, segment by segment, become tokens of the student. Both lie on one
line of units: a byte of text is one, a special token is one of its own. The teacher's distribution
at a position is the student's target where the next tokens of both begin at the same unit, and have
one class.

The student's tokens are those of pieces of text, which end where a segment or a special token does,
and wherever the loss mask of the teacher changes: at the end of a window's overlap, or where an
answer begins. So a token of the student is a target with all of its bytes or with none, every byte
counts as often as for the teacher, and bits per byte of both are over the same bytes. An answer
begins with a token of its own in use as well; in a window, one token may be split that would be one
in the document. Characters that a piece's edge cuts are spelled by tokens of single bytes.

A blank that a tokenizer only adds in front of a text has no unit: the teacher's is left out, the
student's is added where its tokenizer would.
"""

from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

import numpy as np

from kdscale.data.token_bytes import TokenBytes
from kdscale.distill.alignment.coverage import KINDS, Coverage, kinds_of
from kdscale.distill.alignment.pair import TokenizerPair
from kdscale.errors import KdscaleError
from kdscale.types import Rows


@dataclass(frozen=True)
class AlignedRows:
    """Sequences of the student, and where their targets are."""

    rows: Rows
    """[R, T_s]. Sample ids are the teacher's, labels the next tokens. `byte_counts` are the
    teacher's, less what is cut off."""

    source: np.ndarray
    """[R, T_s] int32: the position of the teacher's sequence whose distribution is the target of
    the student's position; -1: the label alone."""

    coverage: Coverage


@dataclass(frozen=True)
class _Tokens:
    """Tokens of all sequences without padding, one after another, on the line of units."""

    ids: np.ndarray  # [n] int64
    row: np.ndarray  # [n] int64
    position: np.ndarray  # [n] int64: in its row
    segment: np.ndarray  # [n] int32
    is_first: np.ndarray  # [n] bool: of its segment
    is_target: np.ndarray  # [n] bool
    units: np.ndarray  # [n] int64: of the token

    @cached_property
    def ends(self) -> np.ndarray:
        """The unit behind each token, [n] int64."""
        return np.cumsum(self.units)

    @property
    def begins(self) -> np.ndarray:
        """The first unit of each token, [n] int64."""
        return self.ends - self.units


class Aligner:
    """Maker of a student's sequences; safe to use from threads."""

    def __init__(self, pair: TokenizerPair, seq_len: int) -> None:
        """Take the student's `seq_len`: what is longer is cut, and counted."""
        self._pair = pair
        self._seq_len = seq_len
        self._kinds = kinds_of(pair.student)

    def convert(self, rows: Rows) -> AlignedRows:
        """Return the student's sequences of the same bytes, one for each of `rows`.

        Raises KdscaleError where a special token of the teacher has no counterpart, ValueError for
        sequences that bring their labels.
        """
        if rows.labels is not None:
            raise ValueError("only sequences whose labels are the next tokens can be aligned")
        theirs = self._read(rows)
        mine = self._tokenize(theirs)
        return self._assemble(rows, mine, self._sources(theirs, mine))

    def _read(self, rows: Rows) -> _Tokens:
        """Return the teacher's tokens."""
        tokens, length = self._pair.teacher, rows.input_ids.shape[1]
        places = np.flatnonzero(rows.segment_ids)
        ids = rows.input_ids.reshape(-1)[places].astype(np.int64)
        row, segment = places // length, rows.segment_ids.reshape(-1)[places]
        is_first = _changes(row, segment)
        return _Tokens(
            ids,
            row,
            places % length,
            segment,
            is_first,
            # The mask stands where a token is predicted.
            rows.loss_mask.reshape(-1)[places - 1] & ~is_first,
            np.where(tokens.is_special[ids], 1, tokens.lengths[ids]).astype(np.int64),
        )

    def _tokenize(self, theirs: _Tokens) -> _Tokens:
        """Return the student's tokens; takes the units of blanks that were added from `theirs`."""
        student = self._pair.student
        is_special = self._pair.teacher.is_special[theirs.ids]
        is_edge = theirs.is_first | is_special | _changes(is_special, theirs.is_target)
        first = np.flatnonzero(is_edge)  # the teacher's first token of every piece
        is_text = ~is_special[first]
        texts, added = self._texts(theirs, first, is_text)
        text_ids, text_counts = student.encode(texts)
        counts = np.ones(len(first), np.int64)
        counts[is_text] = text_counts
        piece = np.repeat(np.arange(len(first)), counts)
        ids, in_text = np.empty(len(piece), np.int64), is_text[piece]
        ids[in_text] = text_ids
        ids[~in_text] = self._specials(theirs, first[~is_text])
        units = np.where(in_text, student.lengths[ids], 1).astype(np.int64)
        units[(np.cumsum(counts) - counts)[added]] -= 1
        owner = first[piece]  # a token of the teacher in the same piece
        row, segment = theirs.row[owner], theirs.segment[owner]
        is_first = _changes(row, segment)
        places = np.arange(len(piece))
        begins = np.maximum.accumulate(np.where(_changes(row), places, 0))
        is_target = theirs.is_target[owner] & ~is_first
        return _Tokens(ids, row, places - begins, segment, is_first, is_target, units)

    def _texts(
        self, theirs: _Tokens, first: np.ndarray, is_text: np.ndarray
    ) -> tuple[list[bytes], np.ndarray]:
        """Return the student's text of every piece that `is_text`, and which got a blank [m]."""
        teacher, student = self._pair.teacher, self._pair.student
        lengths = teacher.lengths[theirs.ids]
        spelled = teacher.spell(theirs.ids)
        begins = (np.cumsum(lengths, dtype=np.int64) - lengths)[first]
        bounds = pairwise([*begins.tolist(), len(spelled)])
        texts = [spelled[begin:end] for begin, end in bounds]
        added = np.zeros(len(first), bool)
        before = np.maximum(first - 1, 0)
        follows = is_text & ~theirs.is_first[first] & teacher.is_special[theirs.ids[before]]
        for piece in np.flatnonzero(follows):
            is_start = bool(theirs.is_first[before[piece]])
            text = texts[piece]
            if self._adds_blanks(teacher, is_start):
                text = teacher.without_blank(text)
                theirs.units[first[piece]] -= len(texts[piece]) - len(text)
            texts[piece] = (
                student.with_blank(text) if self._adds_blanks(student, is_start) else text
            )
            added[piece] = len(texts[piece]) > len(text)
        return [texts[piece] for piece in np.flatnonzero(is_text)], added

    def _adds_blanks(self, tokens: TokenBytes, is_start: bool) -> bool:
        """Tell whether a tokenizer may add a blank to a text behind a special token.

        `is_start` says that this token starts the segment. A conversation's first text stands
        behind a token of its template, so that "first" does not mean it.
        """
        if tokens.prefix == "first":
            return is_start and self._pair.teacher.info.chat is None
        return tokens.prefix == "always"

    def _specials(self, theirs: _Tokens, places: np.ndarray) -> np.ndarray:
        """Return the student's tokens for the teacher's special tokens at `places`."""
        ids = theirs.ids[places]
        first, start = self._pair.start
        found = self._pair.counterparts[ids]
        found = np.where(theirs.is_first[places] & (ids == first), start, found)
        if (found < 0).any():
            number = int(ids[found < 0][0])
            names = {each: name for name, each in self._pair.teacher.names.items()}
            raise KdscaleError(
                f"The teacher's sequences have the special token {number} "
                f"({names.get(number, 'without a name')!r}), and the student's tokenizer has none "
                "of this name or role.",
                "Add it to the student's tokenizer, or distil conversations with the teacher's "
                "tokenizer (distill.tokenizer: teacher).",
            )
        return found

    def _sources(self, theirs: _Tokens, mine: _Tokens) -> np.ndarray:
        """Return the teacher's position for each of the student's tokens as a label; -1: none."""
        begins = mine.begins
        # The teacher's token at the same unit; behind blanks without one.
        label = np.searchsorted(theirs.ends, begins, side="right")
        label = np.minimum(label, len(theirs.ids) - 1)
        has_target = mine.is_target & (mine.units > 0)
        has_target &= theirs.is_target[label] & (theirs.begins[label] == begins)
        classes = self._pair.teacher_classes[theirs.ids[label]]
        has_target &= classes == self._pair.student_classes[mine.ids]
        return np.where(has_target, theirs.position[label] - 1, -1)

    def _assemble(self, rows: Rows, mine: _Tokens, sources: np.ndarray) -> AlignedRows:
        """Return the student's sequences, cut to its length."""
        shape = (len(rows), self._seq_len)
        kept = mine.position < self._seq_len
        row, position = mine.row[kept], mine.position[kept]
        ids = np.full(shape, self._pair.student.info.pad_id, np.int32)
        segments, source = np.zeros(shape, np.int32), np.full(shape, -1, np.int32)
        mask = np.zeros(shape, bool)
        ids[row, position] = mine.ids[kept]
        segments[row, position] = mine.segment[kept]
        labels = kept & mine.is_target  # never at position 0
        mask[mine.row[labels], mine.position[labels] - 1] = True
        source[mine.row[labels], mine.position[labels] - 1] = sources[labels]
        every, cut = (self._bytes(mine, len(rows), part) for part in (mine.is_target, ~kept))
        share = 1 - np.divide(cut, every, out=np.zeros(len(rows)), where=every > 0)
        found = Rows(rows.sample_ids, ids, segments, mask, rows.byte_counts * share)
        return AlignedRows(found, source, self._coverage(mine, kept, sources, int(cut.sum())))

    def _bytes(self, mine: _Tokens, count: int, part: np.ndarray) -> np.ndarray:
        """Return how many bytes of text the targets in `part` have, [R] float64."""
        of_text = part & mine.is_target & ~self._pair.student.is_special[mine.ids]
        return np.bincount(mine.row[of_text], mine.units[of_text], minlength=count)

    def _coverage(
        self, mine: _Tokens, kept: np.ndarray, sources: np.ndarray, cut_bytes: int
    ) -> Coverage:
        kinds = self._kinds[mine.ids]
        targets = kept & mine.is_target
        count, covered = (
            np.bincount(kinds[part], minlength=len(KINDS))
            for part in (targets, targets & (sources >= 0))
        )
        return Coverage(count, covered, int((mine.is_target & ~kept).sum()), cut_bytes)


def _changes(*values: np.ndarray) -> np.ndarray:
    """Return where one of several arrays [n] differs from what stands before, [n] bool."""
    found = np.ones(len(values[0]), bool)
    found[1:] = False
    for each in values:
        found[1:] |= each[1:] != each[:-1]
    return found
