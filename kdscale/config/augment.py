"""Config of varied copies of documents."""

from typing import Annotated, Literal

from pydantic import Field

from kdscale.config.base import Config, Place


class Delete(Config):
    """Words are left out (Wei and Zou, "EDA", EMNLP 2019)."""

    kind: Literal["delete"]

    share: float = Field(default=0.1, gt=0, lt=1)
    """Chance of each word."""


class Swap(Config):
    """Neighbouring words change places (EDA)."""

    kind: Literal["swap"]

    share: float = Field(default=0.1, gt=0, lt=1)
    """Chance of each word."""


class Replace(Config):
    """Words become others: synonyms from a table, or other words of the same document."""

    kind: Literal["replace"]

    share: float = Field(default=0.1, gt=0, lt=1)
    """Chance of each word; of one that the table knows, if there is one."""

    table: Place | None = None
    """Path or URL of a text file with a word, a tab, and its synonyms with commas between, in each
    line. Without it another word of the document takes a word's place."""


class Crop(Config):
    """A random part of the document, from the start of a word to the end of another."""

    kind: Literal["crop"]

    least: float = Field(default=0.5, gt=0, lt=1)
    """Smallest share of the words that is kept."""


AugmentStep = Annotated[Delete | Swap | Replace | Crop, Field(discriminator="kind")]


class AugmentConfig(Config):
    """Varied copies of the training documents.

    The variation follows from the document and the number of its copy.
    """

    steps: tuple[AugmentStep, ...] = Field(min_length=1)
    """Changes made to a copy, in this order."""

    copies: int = Field(default=1, ge=1)
    """Copies of each document, beside itself."""

    of: tuple[Literal["teacher", "cache"], ...] = Field(default=("cache",), min_length=1)
    """The stages that see the copies: `teacher`, its training; `cache`, and so the student."""
