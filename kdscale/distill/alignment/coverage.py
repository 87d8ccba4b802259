"""Coverage: the share of a student's positions that have a target, by kind of text."""

from dataclasses import dataclass

import numpy as np

KINDS = ("words", "digits", "symbols", "blanks", "other scripts", "special tokens")


@dataclass(frozen=True)
class Coverage:
    """Counts over the student's targets, by kind of their label; add them up with +."""

    targets: np.ndarray  # [len(KINDS)] int64: positions that count
    covered: np.ndarray  # [len(KINDS)] int64: those of them with a distribution of the teacher
    cut_targets: int = 0
    """Targets beyond the student's seq_len."""
    cut_bytes: int = 0

    def __add__(self, other: "Coverage") -> "Coverage":
        return Coverage(
            self.targets + other.targets,
            self.covered + other.covered,
            self.cut_targets + other.cut_targets,
            self.cut_bytes + other.cut_bytes,
        )

    @property
    def share(self) -> float:
        """Share of all targets; NaN without any."""
        raise NotImplementedError

    def by_kind(self) -> dict[str, tuple[int, float]]:
        """Return (targets, share that is covered) of every kind that occurs."""
        raise NotImplementedError
