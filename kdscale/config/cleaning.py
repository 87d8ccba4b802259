"""Config of the steps that clean documents."""

from typing import Annotated, Literal, get_args

from pydantic import Field, model_validator

from kdscale.config.base import Config

PiiKind = Literal["email", "credentials", "ip_address", "phone", "credit_card", "iban"]
PII_KINDS: tuple[PiiKind, ...] = get_args(PiiKind)


class Normalise(Config):
    """Characters that look alike become the same.

    NFKC, plain quotes and dashes, single blanks and at most one empty line.
    """

    kind: Literal["normalise"]


class StripMarkup(Config):
    """The text of an HTML or XML document, without scripts and styles."""

    kind: Literal["strip_markup"]


class Language(Config):
    """Documents in other languages are dropped."""

    kind: Literal["language"]

    keep: tuple[str, ...] = Field(default=("en",), min_length=1)
    """Languages as ISO 639-1 names them."""

    least_probability: float = Field(default=0.5, ge=0, le=1)
    """Documents of which the language is less certain are dropped too."""


class Length(Config):
    """Documents with too few or too many words are dropped."""

    kind: Literal["length"]

    min_words: int = Field(default=1, ge=1)
    """Words at least."""

    max_words: int | None = Field(default=None, ge=1)
    """Words at most."""

    @model_validator(mode="after")
    def _in_order(self) -> "Length":
        if self.max_words is not None and self.max_words < self.min_words:
            raise ValueError(f"max_words {self.max_words} is below min_words {self.min_words}")
        return self


class MaskPii(Config):
    """Replacement of personal data and credentials by their kind, such as <EMAIL>."""

    kind: Literal["mask_pii"]

    of: tuple[PiiKind, ...] = Field(default=PII_KINDS, min_length=1)
    """Kinds to replace; `credentials` are user and password in a URL."""

    region: str = Field(default="US", pattern="^[A-Z]{2}$")
    """Country whose way of writing phone numbers is understood without a country code."""


class NearDuplicates(Config):
    """Removal of near duplicates: of documents that nearly repeat one another, one stays."""

    kind: Literal["near_duplicates"]

    similarity: float = Field(default=0.8, gt=0, lt=1)
    """Documents that share so much of their word sequences (Jaccard) are taken for repetitions."""

    words: int = Field(default=5, ge=1)
    """Words of a sequence."""

    permutations: int = Field(default=128, ge=16)
    """Hash functions of the MinHash: more of them err less and cost more."""


# What became of a document is a bit a step.
MOST_STEPS = 32

CleaningStep = Annotated[
    Normalise | StripMarkup | Language | Length | MaskPii | NearDuplicates,
    Field(discriminator="kind"),
]
