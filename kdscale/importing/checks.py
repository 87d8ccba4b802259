"""Checks of a sequence: every entry a distribution over the vocabulary, or an error with its place.

Ids come out sorted, the most probable first. What is missing at the end of a short entry is NO_ID.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np

from kdscale.errors import KdscaleError
from kdscale.importing.sequence import NO_ID, Sequence

Values = Literal["logprobs", "probs", "logits", "renormalised"]
"""Meaning of a set's values. Of `logits` and of log-probabilities that were `renormalised` over the
listed ids, the mass of the other ids is not known."""

_REST_IS_KNOWN = ("logprobs", "probs")
_ROUNDING = 0.02


@dataclass(frozen=True)
class Meaning:
    """Meaning of the values of a set, with the rounding that they may have."""

    values: Values
    vocab_size: int
    tolerance: float  # mass above 1 that rounding explains

    @property
    def rest_is_known(self) -> bool:
        """True if the mass of the ids that are not listed follows from the others'."""
        return self.values in _REST_IS_KNOWN


@dataclass(frozen=True)
class Entries:
    """Checked distributions of a sequence's tokens."""

    about: np.ndarray  # [p] int64: the token that each is of, 1 .. n - 1
    ids: np.ndarray  # [p, K] int64, NO_ID at the end of short ones
    log_probs: np.ndarray  # [p, K] float64, falling; -inf where there is no id
    mass: np.ndarray  # [p] float64: of the listed ids, at most 1
    scaled: np.ndarray  # [p] bool: where the values had a mass above 1 that no rounding explains

    @property
    def width(self) -> int:
        """Ids of the longest entry."""
        return int((self.ids >= 0).sum(1).max(initial=0))


def checked(sequence: Sequence, meaning: Meaning) -> Entries:
    """Return the distributions of the sequence's own tokens but the first.

    Raises KdscaleError, with file, row, position and values, for what is no distribution.
    """
    where, vocab_size = sequence.where, meaning.vocab_size
    tokens = sequence.tokens
    outside = (tokens < 0) | (tokens >= vocab_size)
    if outside.any():
        at = int(np.flatnonzero(outside)[0])
        raise _beyond(f"{where}: token {at}", int(tokens[at]), vocab_size)
    about = sequence.first + np.arange(len(sequence.ids))
    kept = (about >= 1) & (about < len(tokens)) & (sequence.ids >= 0).any(1)
    about, ids, values = about[kept], sequence.ids[kept], sequence.values[kept]
    _check_ids(where, about, ids, vocab_size)
    log_probs = _log_probs(where, about, ids, values, meaning)
    order = np.argsort(-log_probs, axis=1, kind="stable")
    ids, log_probs = (np.take_along_axis(each, order, 1) for each in (ids, log_probs))
    mass = np.exp(log_probs).sum(1)
    above = np.flatnonzero(mass > 1 + meaning.tolerance)
    if len(above):
        at = int(above[0])
        shown = ", ".join(f"{value:.4g}" for value in values[at][:4])
        raise KdscaleError(
            f"{where}: the distribution of token {about[at]} has a mass of {mass[at]:.4g}; its "
            f"values are {shown}, ... ({len(above)} of {len(mass)} positions of the row).",
            "If these are raw logits, give --values logits; if probabilities, --values probs. For "
            "a compressed set, check its compression config.",
        )
    over = np.maximum(mass, 1.0)
    scaled = over > 1 + _ROUNDING
    return Entries(about, ids, log_probs - np.log(over)[:, None], mass / over, scaled)


def _check_ids(where: str, about: np.ndarray, ids: np.ndarray, vocab_size: int) -> None:
    outside = (ids >= vocab_size) | (ids < NO_ID)
    if outside.any():
        row, column = (int(axis[0]) for axis in np.nonzero(outside))
        place = f"{where}: the distribution of token {about[row]}"
        raise _beyond(place, int(ids[row, column]), vocab_size)
    ordered = np.sort(ids, axis=1)
    twice = (ordered[:, 1:] == ordered[:, :-1]) & (ordered[:, 1:] >= 0)
    if twice.any():
        row, column = (int(axis[0]) for axis in np.nonzero(twice))
        raise KdscaleError(
            f"{where}: the distribution of token {about[row]} lists id {ordered[row, column]} "
            f"twice ({int(twice.any(1).sum())} of {len(ids)} positions of the row do so).",
            "Write every id once a position; for a compressed set, check its compression config.",
        )


def _log_probs(
    where: str, about: np.ndarray, ids: np.ndarray, values: np.ndarray, meaning: Meaning
) -> np.ndarray:
    present = ids >= 0
    wrong = present & (np.isnan(values) | (values == np.inf))
    if meaning.values == "probs":
        wrong |= present & (values < 0)
    if wrong.any():
        row, column = (int(axis[0]) for axis in np.nonzero(wrong))
        raise KdscaleError(
            f"{where}: the distribution of token {about[row]} gives id {ids[row, column]} the "
            f"value {values[row, column]} ({int(wrong.any(1).sum())} of {len(ids)} positions of "
            "the row have such values).",
            "Capture these rows again, or take them out of the set.",
        )
    if meaning.values == "probs":
        with np.errstate(divide="ignore"):
            values = np.log(np.where(present, values, 0.0))
    found = np.where(present, values, -np.inf)
    if meaning.rest_is_known:
        # A value far above 0 would overflow; its mass is an error anyway.
        return np.minimum(found, 700.0)
    highest = found.max(1, initial=-np.inf, keepdims=True)
    highest = np.where(np.isfinite(highest), highest, 0.0)
    total = np.exp(found - highest).sum(1, keepdims=True)
    return found - highest - np.log(np.maximum(total, np.finfo(np.float64).tiny))


def _beyond(what: str, number: int, vocab_size: int) -> KdscaleError:
    return KdscaleError(
        f"{what} is id {number}, and the tokenizer has the ids 0 to {vocab_size - 1}.",
        "Give the tokenizer of the teacher that the set is of (--tokenizer); for a compressed set, "
        "check `d` of its compression config.",
    )
