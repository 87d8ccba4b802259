"""Check that a set's distributions belong to its tokens: the labels must fit best where they are.

Tools differ in which token an entry is about, and a set that is off by one trains without an error.
The distributions of many positions are held against the actual token, the one before and the one
after: a set whose distributions fit a neighbour better, or whose labels are less likely than
chance, is refused.
"""

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from kdscale.errors import KdscaleError
from kdscale.importing.checks import Entries

SHIFTS = (-1, 0, 1)
POSITIONS = 20_000
"""Positions that are compared."""

_LEAST = 64
_CLEARLY = 0.05  # nats
_SMALLEST_REST = 1e-6


@dataclass
class Alignment:
    """Sums over positions that have all three tokens."""

    vocab_size: int
    positions: int = 0
    log_probs: dict[int, float] = field(default_factory=lambda: dict.fromkeys(SHIFTS, 0.0))
    listed: dict[int, int] = field(default_factory=lambda: dict.fromkeys(SHIFTS, 0))

    def add(self, tokens: np.ndarray, entries: Entries) -> None:
        """Count the entries of a sequence in, up to POSITIONS."""
        inside = (entries.about >= 1) & (entries.about < len(tokens) - 1)
        chosen = np.flatnonzero(inside)[: POSITIONS - self.positions]
        for shift in SHIFTS:
            labels = tokens[entries.about[chosen] + shift]
            log_probs, listed = label_log_probs(entries, chosen, labels, self.vocab_size)
            self.log_probs[shift] += float(log_probs.sum())
            self.listed[shift] += int(listed.sum())
        self.positions += len(chosen)

    def mean(self, shift: int) -> float:
        """Return the mean log-probability of the tokens `shift` places on."""
        return self.log_probs[shift] / max(1, self.positions)

    def as_dict(self) -> dict[str, Any]:
        """Return the figures for the cache's facts."""
        return {
            str(shift): {
                "mean_log_prob": round(self.mean(shift), 4),
                "listed": round(self.listed[shift] / max(1, self.positions), 4),
            }
            for shift in SHIFTS
        } | {"positions": self.positions}

    def check(self, allow_any: bool) -> None:
        """Refuse a set that fits other tokens better, unless `allow_any`. Raises KdscaleError."""
        if allow_any or self.positions < _LEAST:
            return
        figures = "; ".join(
            f"{shift:+d}: mean log-probability {self.mean(shift):.3f}, listed at "
            f"{self.listed[shift] / self.positions:.1%}"
            if shift
            else f"as given: {self.mean(0):.3f}, listed at {self.listed[0] / self.positions:.1%}"
            for shift in SHIFTS
        )
        best = max(SHIFTS, key=self.mean)
        if best != 0 and self.mean(best) > self.mean(0) + _CLEARLY:
            raise KdscaleError(
                f"The distributions fit the tokens better when they are moved by {best:+d} (over "
                f"{self.positions:,} positions; {figures}).",
                f"Give --align {'next' if best > 0 else 'own'}, if entries are about the "
                f"{'next' if best > 0 else 'own'} token; else write the columns so that they "
                "belong together. --allow-misaligned imports them as they are.",
            )
        chance = -math.log(self.vocab_size)
        if self.mean(0) < chance:
            raise KdscaleError(
                f"The tokens are less likely than chance ({chance:.3f}) under their distributions "
                f"(over {self.positions:,} positions; {figures}).",
                "Check that tokenizer, tokens and distributions are of one teacher and in one "
                "order. --allow-misaligned imports them as they are.",
            )


def label_log_probs(
    entries: Entries, chosen: np.ndarray, labels: np.ndarray, vocab_size: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return the log-probability [c] of a label at each chosen entry, and whether it is listed.

    One that is not listed has its share of the rest, as if that were spread evenly; at most what
    the least likely listed id has.
    """
    ids, log_probs = entries.ids[chosen], entries.log_probs[chosen]
    hits = ids == labels[:, None]
    listed = hits.any(1)
    own = np.where(hits, log_probs, -np.inf).max(1, initial=-np.inf)
    counts = (ids >= 0).sum(1)
    rest = np.maximum(1 - entries.mass[chosen], _SMALLEST_REST)
    share = np.log(rest / np.maximum(vocab_size - counts, 1))
    smallest = np.where(ids >= 0, log_probs, np.inf).min(1, initial=np.inf)
    found = np.where(listed, own, np.minimum(share, smallest))
    return np.maximum(found, np.log(_SMALLEST_REST / vocab_size)), listed
