"""The configured steps of cleaning: each takes a document's text and gives another, or drops it.

They run in Ray's tasks, which load no torch, and import their libraries when a config asks for
them. Near duplicates are no step of a single text: see `near.py`.
"""

import re
import unicodedata
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

from kdscale.config.cleaning import (
    CleaningStep,
    Language,
    Length,
    MaskPii,
    NearDuplicates,
    Normalise,
    StripMarkup,
)
from kdscale.data.cleaning.pii import mask_pii
from kdscale.errors import KdscaleError

Step = Callable[[str], str | None]
"""From a text to the cleaned one, None where the document is dropped."""

_QUOTES = str.maketrans(
    {"\u2018": "'", "\u2019": "'", "\u201a": "'", "\u201c": '"', "\u201d": '"', "\u201e": '"'}
    | {"\u2010": "-", "\u2011": "-", "\u2012": "-", "\u2013": "-", "\u2014": "-", "\u2212": "-"}
)
_BLANKS = re.compile(r"[^\S\n]+")
_EMPTY_LINES = re.compile(r"\n{3,}")
_TAG = re.compile(r"<[a-zA-Z!/?][^<>]*>|&[a-zA-Z]+;|&#\d+;")
_UNSEEN = ("script", "style", "noscript", "template", "head")


def make_steps(config: Sequence[CleaningStep]) -> list[Step]:
    """A function for each step of the config. KdscaleError for a language that is not known."""
    return [_make(step) for step in config]


def _make(step: CleaningStep) -> Step:
    if isinstance(step, Normalise):
        return normalise
    if isinstance(step, StripMarkup):
        return strip_markup
    if isinstance(step, Length):
        return _length(step)
    if isinstance(step, Language):
        return _language(step)
    if isinstance(step, MaskPii):
        return lambda text: mask_pii(text, step.of, step.region)
    assert isinstance(step, NearDuplicates)
    return lambda text: text


def normalise(text: str) -> str:
    """NFKC, plain quotes and dashes, single blanks, at most one empty line between two others."""
    text = unicodedata.normalize("NFKC", text).translate(_QUOTES)
    lines = (_BLANKS.sub(" ", line).strip(" ") for line in text.split("\n"))
    return _EMPTY_LINES.sub("\n\n", "\n".join(lines)).strip("\n")


def strip_markup(text: str) -> str:
    """What a reader of an HTML or XML document sees. A text without a tag or an entity stays as it
    is: `a < b` is no markup."""
    if not _TAG.search(text):
        return text
    from bs4 import BeautifulSoup

    soup = BeautifulSoup(text, "html.parser")
    for element in soup.find_all(_UNSEEN):
        element.decompose()
    lines = (line.strip() for line in soup.get_text("\n").split("\n"))
    return "\n".join(line for line in lines if line)


def _length(step: Length) -> Step:
    def keep(text: str) -> str | None:
        words = len(text.split())
        too_many = step.max_words is not None and words > step.max_words
        return None if words < step.min_words or too_many else text

    return keep


def _language(step: Language) -> Step:
    model = _identifier()
    unknown = sorted(set(step.keep) - set(model.labels))
    if unknown:
        raise KdscaleError(
            f"data.cleaning: the languages {unknown} are not known.",
            f"Choose from {', '.join(sorted(model.labels))}.",
        )

    def keep(text: str) -> str | None:
        found, probability = model.classify(text)
        is_kept = found in step.keep and probability >= step.least_probability
        return text if is_kept else None

    return keep


@lru_cache(maxsize=1)
def _identifier() -> Any:
    """langid's model (Lui and Baldwin, ACL 2012), with probabilities that sum to 1."""
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
