"""A student's sequences over the bytes of its teacher's."""

from dataclasses import dataclass

import numpy as np

from kdscale.distill.alignment.coverage import Coverage
from kdscale.distill.alignment.pair import TokenizerPair
from kdscale.types import Rows


@dataclass(frozen=True)
class AlignedRows:
    """Sequences of the student, and where their targets are."""

    rows: Rows
    """[R, T_s]; sample ids are the teacher's, labels the next tokens. `byte_counts` are the
    teacher's, less what is cut off."""

    source: np.ndarray
    """[R, T_s] int32: the position of the teacher's sequence whose distribution is the target of
    the student's position; -1: the label alone."""

    coverage: Coverage


class Aligner:
    """Maker of a student's sequences; safe to use from threads."""

    def __init__(self, pair: TokenizerPair, seq_len: int) -> None:
        """Take the student's `seq_len`: what is longer is cut, and counted."""
        self._pair = pair
        self._seq_len = seq_len

    def convert(self, rows: Rows) -> AlignedRows:
        """Return the student's sequences of the same bytes, one for each of `rows`.

        Raises KdscaleError where a special token of the teacher has no counterpart.
        """
        raise NotImplementedError
