"""One document's bytes or text to clean text, or the reason why it is left out.

Cleaning is small on purpose: it removes what differs between files without meaning (line ends,
composed characters, invisible controls, trailing blanks), so that exact duplicates are found by one
hash, and leaves everything that a reader would see. It is idempotent.
"""

import re
import unicodedata
from enum import IntEnum

import xxhash

# C0 and C1 controls without tab and newline, and the byte-order mark.
_CONTROLS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ufeff]")


class Status(IntEnum):
    """What became of a document on its way in."""

    KEPT = 0
    UNDECODABLE = 1
    SHORT = 2


FIRST_STEP = 16
"""Status of documents that the first of the configured steps dropped; the next has one more."""


def clean(text: str) -> str:
    """`text` in NFC with plain newlines, without controls, trailing blanks and outer empty lines.

    `clean(clean(text)) == clean(text)`.
    """
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    # Controls go before NFC: one may stand between a letter and its accent.
    text = unicodedata.normalize("NFC", _CONTROLS.sub("", text))
    # Not a pattern: `[ \t]+$` takes quadratic time over a long run of blanks inside a line.
    return "\n".join(line.rstrip(" \t") for line in text.split("\n")).strip("\n")


def admit(raw: bytes | str | None, min_characters: int) -> tuple[str, Status]:
    """Decode and clean one document; the text is empty unless the status is KEPT.

    None stands for a document that its container could not give. Bytes that are not UTF-8, and
    strings with lone surrogates (JSON can hold them), are undecodable.
    """
    if raw is None:
        return "", Status.UNDECODABLE
    try:
        text = raw.decode("utf-8") if isinstance(raw, bytes) else raw
        text = clean(text)
        text.encode("utf-8")
    except UnicodeError:
        return "", Status.UNDECODABLE
    return (text, Status.KEPT) if len(text) >= min_characters else ("", Status.SHORT)


def text_digest(text: str) -> bytes:
    """16 bytes that are equal for equal texts: xxh3_128 of the UTF-8 bytes."""
    return xxhash.xxh3_128_digest(text.encode("utf-8"))


def name_hash(name: str) -> int:
    """A document's place in 0..2**64-1, from its name alone: xxh3_64.

    Low places are held out and high places train the tokenizer, so both choices stay as they are
    when documents are added.
    """
    return xxhash.xxh3_64_intdigest(name.encode("utf-8", "surrogateescape"))
