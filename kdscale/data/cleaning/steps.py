"""Cleaning steps, one maker for each `kind` of `data.cleaning`.

A step is pure and works on one text. Its libraries are imported when a config asks for it, since
steps run in Ray tasks that have to start fast.
"""

import re
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from kdscale.config.cleaning import CleaningStep, Language, Length, MaskPii, NearDuplicates
from kdscale.data.cleaning.minhash import band_hashes
from kdscale.data.cleaning.pii import mask_pii
from kdscale.errors import KdscaleError


@dataclass(frozen=True)
class Step:
    """One configured step."""

    apply: Callable[[str], str | None]
    """From a text to the cleaned one; None drops the document."""

    is_filter: bool = False
    """Decides about the whole document: of a conversation it sees all texts as one."""

    signature: Callable[[str], bytes] | None = None
    """Hashes of the cleaned text by which documents are compared with one another later."""


def make_steps(config: Sequence[CleaningStep]) -> list[Step]:
    """Return the steps of the config. Raises KdscaleError for an unknown language."""
    return [STEPS[step.kind](step) for step in config]


_QUOTES = str.maketrans(
    {"\u2018": "'", "\u2019": "'", "\u201a": "'", "\u201c": '"', "\u201d": '"', "\u201e": '"'}
    | {"\u2010": "-", "\u2011": "-", "\u2012": "-", "\u2013": "-", "\u2014": "-", "\u2212": "-"}
)
_BLANKS = re.compile(r"[^\S\n]+")
_EMPTY_LINES = re.compile(r"\n{3,}")


def normalise(text: str) -> str:
    """Apply NFKC, plain quotes and dashes, single blanks and at most one empty line in a row."""
    text = unicodedata.normalize("NFKC", text).translate(_QUOTES)
    lines = (_BLANKS.sub(" ", line).strip(" ") for line in text.split("\n"))
    return _EMPTY_LINES.sub("\n\n", "\n".join(lines)).strip("\n")


_TAG = re.compile(r"<[a-zA-Z!/?][^<>]*>|&[a-zA-Z]+;|&#\d+;")
_INVISIBLE = ("script", "style", "noscript", "template", "head")


def strip_markup(text: str) -> str:
    """Return the visible text of an HTML or XML document.

    A text without a tag or an entity stays as it is, as `a < b` is no markup, and so does one that
    the parser refuses.
    """
    if not _TAG.search(text):
        return text
    from bs4 import BeautifulSoup
    from bs4.exceptions import ParserRejectedMarkup

    try:
        soup = BeautifulSoup(text, "html.parser")
    except ParserRejectedMarkup:
        return text
    for element in soup.find_all(_INVISIBLE):
        element.decompose()
    lines = (line.strip() for line in soup.get_text("\n").split("\n"))
    return "\n".join(line for line in lines if line)


def _length(config: Length) -> Step:
    def keep(text: str) -> str | None:
        words = len(text.split())
        is_long = config.max_words is not None and words > config.max_words
        return None if words < config.min_words or is_long else text

    return Step(keep, is_filter=True)


def _language(config: Language) -> Step:
    model = _language_model()
    unknown = sorted(set(config.keep) - set(model.labels))
    if unknown:
        raise KdscaleError(
            f"data.cleaning: the languages {unknown} are not known.",
            f"Choose from {', '.join(sorted(model.labels))}.",
        )

    def keep(text: str) -> str | None:
        language, probability = model.classify(text)
        is_kept = language in config.keep and probability >= config.least_probability
        return text if is_kept else None

    return Step(keep, is_filter=True)


@lru_cache(maxsize=1)
def _language_model() -> Any:
    """Return langid's model (Lui and Baldwin, ACL 2012), with probabilities that sum to 1."""
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)


def _mask_pii(config: MaskPii) -> Step:
    return Step(lambda text: mask_pii(text, config.of, config.region))


def _near_duplicates(config: NearDuplicates) -> Step:
    return Step(lambda text: text, signature=lambda text: band_hashes(text, config).tobytes())


STEPS: dict[str, Callable[[Any], Step]] = {
    "normalise": lambda config: Step(normalise),
    "strip_markup": lambda config: Step(strip_markup),
    "length": _length,
    "language": _language,
    "mask_pii": _mask_pii,
    "near_duplicates": _near_duplicates,
}
