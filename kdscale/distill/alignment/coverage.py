"""Coverage: the share of a student's targets for which its teacher has a distribution, by kind."""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from kdscale.data.token_bytes import TokenBytes

KINDS = ("words", "digits", "symbols", "blanks", "non-ASCII", "special tokens")
"""Kinds of a token, by its bytes. Symbols and blanks are most of what makes code of text."""

_WORDS, _DIGITS, _SYMBOLS, _BLANKS, _OTHER, _SPECIAL = range(len(KINDS))


@dataclass(frozen=True)
class Coverage:
    """Counts over a student's targets, by kind of the label; `+` adds them up."""

    targets: np.ndarray  # [len(KINDS)] int64: positions that the loss mask counts
    covered: np.ndarray  # [len(KINDS)] int64: those of them with a distribution of the teacher
    cut_targets: int = 0
    """Targets beyond the student's seq_len."""

    cut_bytes: int = 0

    @classmethod
    def none(cls) -> "Coverage":
        """Return the coverage of nothing, to add to."""
        return cls(np.zeros(len(KINDS), np.int64), np.zeros(len(KINDS), np.int64))

    def __add__(self, other: "Coverage") -> "Coverage":
        return Coverage(
            self.targets + other.targets,
            self.covered + other.covered,
            self.cut_targets + other.cut_targets,
            self.cut_bytes + other.cut_bytes,
        )

    @property
    def share(self) -> float:
        """Share of all targets that is covered; NaN without any."""
        return float(self.covered.sum() / self.targets.sum()) if self.targets.any() else math.nan

    def by_kind(self) -> dict[str, float]:
        """Return the share that is covered of every kind that occurs."""
        shares = zip(KINDS, self.covered.tolist(), self.targets.tolist(), strict=True)
        return {kind: covered / targets for kind, covered, targets in shares if targets}

    def as_dict(self) -> dict[str, Any]:
        """Return plain values."""
        return {
            "targets": dict(zip(KINDS, self.targets.tolist(), strict=True)),
            "covered": dict(zip(KINDS, self.covered.tolist(), strict=True)),
            "cut_targets": self.cut_targets,
            "cut_bytes": self.cut_bytes,
        }

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "Coverage":
        """Invert `as_dict`, also after JSON."""
        targets, covered = (
            np.array([values[name][kind] for kind in KINDS], np.int64)
            for name in ("targets", "covered")
        )
        return cls(targets, covered, values["cut_targets"], values["cut_bytes"])


def kinds_of(tokens: TokenBytes) -> np.ndarray:
    """Return the kind of every id, a number of KINDS, [V] int8."""
    kinds = [_kind(tokens.of_id(number)) for number in range(tokens.vocab_size)]
    return np.where(tokens.is_special, _SPECIAL, np.array(kinds, np.int8)).astype(np.int8)


def _kind(text: bytes) -> int:
    if not text.isascii():
        return _OTHER
    if not text.strip():
        return _BLANKS
    decoded = text.decode("ascii")
    if any(map(str.isdigit, decoded)):
        return _DIGITS
    return _WORDS if any(map(str.isalpha, decoded)) else _SYMBOLS
