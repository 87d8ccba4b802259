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

import numpy as np

from kdscale.distill.alignment.coverage import Coverage, kinds_of
from kdscale.distill.alignment.pair import TokenizerPair
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
    """Tokens of all sequences, one after another, on the line of units."""

    ids: np.ndarray  # [n] int64
    units: np.ndarray  # [n] int64: how many a token has
    ends: np.ndarray  # [n] int64: the unit behind the token
    row: np.ndarray  # [n] int64
    position: np.ndarray  # [n] int64: in the row
    is_first: np.ndarray  # [n] bool: of its segment
    is_target: np.ndarray  # [n] bool


@dataclass(frozen=True)
class _Pieces:
    """Pieces of text, and special tokens, in order; a piece is within one segment."""

    first: np.ndarray  # [m] int64: its first token of the teacher
    is_text: np.ndarray  # [m] bool
    added: np.ndarray  # [m] int64: 1 where the student's text has a blank that is no unit


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
        theirs, segments = self._read(rows)
        mine, owners = self._tokenize(theirs)
        found = self._match(theirs, mine)
        return self._assemble(rows, mine, segments[owners], found)

    def _read(self, rows: Rows) -> tuple[_Tokens, np.ndarray]:
        """Return the teacher's tokens, without padding, and their segments [n]."""
        length = rows.input_ids.shape[1]
        places = np.flatnonzero(rows.segment_ids)
        row, position = places // length, places % length
        segments = rows.segment_ids.reshape(-1)[places]
        is_first = np.ones(len(places), bool)
        is_first[1:] = (row[1:] != row[:-1]) | (segments[1:] != segments[:-1])
        ids = rows.input_ids.reshape(-1)[places].astype(np.int64)
        units = np.where(self._pair.teacher.is_special[ids], 1, self._pair.teacher.lengths[ids])
        # The mask stands where the token is predicted.
        is_target = rows.loss_mask.reshape(-1)[places - 1] & ~is_first
        tokens = _Tokens(ids, units.astype(np.int64), units, row, position, is_first, is_target)
        return tokens, segments
