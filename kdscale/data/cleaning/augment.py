"""Augmentation: varied copies of documents, made before tokenisation.

So the teacher that fills a cache sees the texts of its student. A copy follows from the text and
its number alone: it is the same on every machine, and whatever documents are added elsewhere.
Blanks and line ends between words stay.
"""

import re
from collections.abc import Iterator, Mapping

import numpy as np
import xxhash

from kdscale.config.augment import AugmentConfig, AugmentStep, Crop, Delete, Replace, Swap
from kdscale.config.text import decode_text
from kdscale.errors import KdscaleError
from kdscale.store import file_at

# Alternates words and the blanks between them.
_WORDS = re.compile(r"(\s+)")
Words = list[str]
Synonyms = Mapping[str, list[str]]
Tables = Mapping[str, Synonyms]
"""By the path that the config names them by."""


class Augmenter:
    """Maker of the varied copies of a config.

    It reads the synonym tables where it is created and carries them to tasks on other machines.
    Raises KdscaleError where a table is missing or a line of it is malformed.
    """

    def __init__(self, config: AugmentConfig) -> None:
        self.copies = config.copies
        self._steps = config.steps
        self._tables = {path: load_table(path) for path in table_paths(config)}

    def vary(self, text: str) -> Iterator[str]:
        """Yield the copies of a text; those equal to the text itself are left out."""
        for number in range(self.copies):
            random = np.random.default_rng(xxhash.xxh3_64_intdigest(text.encode(), seed=number))
            varied = text
            for step in self._steps:
                varied = vary(varied, step, random, self._tables)
            if varied != text:
                yield varied


def table_paths(config: AugmentConfig) -> list[str]:
    """Return the synonym files that a config names."""
    return [step.table for step in config.steps if isinstance(step, Replace) and step.table]


def vary(text: str, step: AugmentStep, random: np.random.Generator, tables: Tables) -> str:
    """Apply one step. A text of fewer than two words stays as it is."""
    parts = _WORDS.split(text)
    words, between = parts[::2], [*parts[1::2], ""]
    if len([word for word in words if word]) < 2:
        return text
    if isinstance(step, Delete):
        return _delete(words, between, step, random)
    if isinstance(step, Crop):
        return _crop(words, between, step, random)
    if isinstance(step, Swap):
        return _joined(_swap(words, step, random), between)
    table = None if step.table is None else tables[step.table]
    return _joined(_replace(words, step, random, table), between)


def _joined(words: Words, between: Words) -> str:
    return "".join(word + gap for word, gap in zip(words, between, strict=True))


def _delete(words: Words, between: Words, step: Delete, random: np.random.Generator) -> str:
    kept = random.random(len(words)) >= step.share
    # An empty document would be none.
    kept[random.integers(len(words))] = True
    pairs = [(w, b) for w, b, keep in zip(words, between, kept, strict=True) if keep]
    return _joined([word for word, _ in pairs], [gap for _, gap in pairs]).rstrip()


def _crop(words: Words, between: Words, step: Crop, random: np.random.Generator) -> str:
    count = max(1, round(random.uniform(step.least, 1) * len(words)))
    start = int(random.integers(len(words) - count + 1))
    part = slice(start, start + count)
    return _joined(words[part], between[part]).rstrip()


def _swap(words: Words, step: Swap, random: np.random.Generator) -> Words:
    words, at = list(words), 0
    while at + 1 < len(words):
        if random.random() < step.share:
            words[at], words[at + 1] = words[at + 1], words[at]
            at += 1
        at += 1
    return words


def _replace(
    words: Words, step: Replace, random: np.random.Generator, table: Synonyms | None
) -> Words:
    chances = random.random(len(words))
    return [
        word if chance >= step.share else _other(word, words, table, random)
        for word, chance in zip(words, chances, strict=True)
    ]


def _other(word: str, words: Words, table: Synonyms | None, random: np.random.Generator) -> str:
    """Return a synonym with the word's capital and punctuation, the word where there is none.

    Without a table, any word of the document.
    """
    if table is None:
        return words[random.integers(len(words))]
    bare = word.strip(".,;:!?()[]\"'")
    found = table.get(bare.casefold())
    if not bare or not found:
        return word
    other = found[random.integers(len(found))]
    return word.replace(bare, other.capitalize() if bare[0].isupper() else other)


def load_table(path: str) -> Synonyms:
    """Return the synonyms in a file.

    Raises KdscaleError where it is missing or a line is malformed.
    """
    store, name = file_at(path)
    if not store.exists(name):
        raise KdscaleError(
            f"The table of synonyms {path!r} is not there.",
            "Give a text file: a word, a tab, its synonyms with commas between, in each line.",
        )
    table: dict[str, list[str]] = {}
    text = decode_text(store.get(name), f"The table of synonyms {path!r}")
    for number, line in enumerate(text.splitlines(), start=1):
        word, tab, others = line.partition("\t")
        synonyms = [other.strip() for other in others.split(",") if other.strip()]
        if line.strip() and not (tab and word.strip() and synonyms):
            raise KdscaleError(
                f"Line {number} of {path!r} is no word with its synonyms: {line[:60]!r}.",
                "Write a word, a tab, and its synonyms with commas between.",
            )
        if synonyms:
            table[word.strip().casefold()] = synonyms
    return table
