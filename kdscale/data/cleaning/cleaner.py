"""Cleaning of one document: decoding, normal form, the configured steps, the shortest length.

The normal form is small on purpose: it removes what differs between files without meaning (line
ends, composed characters, invisible controls, trailing blanks), so that exact duplicates are found
by one hash, and leaves everything that a reader would see.
"""

import re
import unicodedata
from dataclasses import replace
from enum import IntEnum
from typing import NamedTuple

import xxhash

from kdscale.config.data import DataConfig
from kdscale.data.chat.messages import Conversation, dump, load
from kdscale.data.cleaning.steps import make_steps

# C0 and C1 controls without tab and newline, and the byte-order mark.
_CONTROLS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ufeff]")
# Between the messages of a conversation that is read as one text.
_SEPARATOR = "\n\n"


class Status(IntEnum):
    """Outcome of cleaning; FIRST_STEP + n where step n dropped the document."""

    KEPT = 0
    UNDECODABLE = 1
    SHORT = 2


FIRST_STEP = 16


class Cleaned(NamedTuple):
    """Result of cleaning one document; the text is empty unless the status is KEPT."""

    text: str
    status: int  # a Status, or FIRST_STEP + the number of the step that dropped it
    changed: int  # a bit for each step that changed it
    bands: bytes | None  # uint64 each, for the search for near duplicates


class Cleaner:
    """Cleaning as the config asks for it.

    Of a conversation, steps that change text see each text of each message, and filters see all of
    them as one. Raises KdscaleError where a step cannot be made.
    """

    def __init__(self, config: DataConfig) -> None:
        self._steps = make_steps(config.cleaning)
        self._signature = next((step.signature for step in self._steps if step.signature), None)
        self._min_characters = config.min_characters
        self._are_conversations = config.chat is not None

    def __call__(self, raw: bytes | str | None) -> Cleaned:
        """Clean one document; None stands for one that its container could not decode."""
        talk: Conversation | None = None
        if self._are_conversations and isinstance(raw, str):
            talk = load(raw)
            decoded = [decode(each, 0) for message in talk.messages for each in message.strings]
            # Tools are rendered as they are: they are no text, but must be encodable.
            every = decoded + [decode(each, 0) for each in talk.tool_strings]
            status = max(status for _, status in every) if decoded else Status.SHORT
            # Many templates strip messages, so outer blanks cannot be targets.
            parts = [text.strip() for text, _ in decoded]
        else:
            text, status = decode(raw, 1)
            parts = [text]
        if status is not Status.KEPT:
            return Cleaned("", status, 0, None)
        return self._apply_steps(parts, talk)

    def _apply_steps(self, parts: list[str], talk: Conversation | None) -> Cleaned:
        """Clean the texts of a document: one, or those of all messages."""
        changed = 0
        for number, step in enumerate(self._steps):
            texts = [_SEPARATOR.join(parts)] if step.is_filter else parts
            found = [text for text in map(step.apply, texts) if text is not None]
            if len(found) < len(texts):
                return Cleaned("", FIRST_STEP + number, changed, None)
            if not step.is_filter and found != parts:
                # A step may leave blanks where it took something away.
                parts = [clean(part).strip() if talk else clean(part) for part in found]
                changed |= 1 << number
        text = _SEPARATOR.join(parts)
        if len(text) < self._min_characters:
            return Cleaned("", Status.SHORT, changed, None)
        bands = None if self._signature is None else self._signature(text)
        if talk is not None:
            left = iter(parts)
            text = dump(replace(talk, messages=[m.with_strings(left) for m in talk.messages]))
        return Cleaned(text, Status.KEPT, changed, bands)


def clean(text: str) -> str:
    """Return `text` in NFC with plain newlines, no controls, trailing blanks or outer empty lines.

    Idempotent.
    """
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    # Controls go before NFC: one may stand between a letter and its accent.
    text = unicodedata.normalize("NFC", _CONTROLS.sub("", text))
    # Not a pattern: `[ \t]+$` takes quadratic time over a long run of blanks inside a line.
    return "\n".join(line.rstrip(" \t") for line in text.split("\n")).strip("\n")


def decode(raw: bytes | str | None, min_characters: int) -> tuple[str, Status]:
    """Decode and normalise one document; the text is empty unless the status is KEPT.

    None, bytes that are not UTF-8 and strings with lone surrogates (JSON can hold them) are
    undecodable.
    """
    if raw is None:
        return "", Status.UNDECODABLE
    try:
        text = clean(raw.decode("utf-8") if isinstance(raw, bytes) else raw)
        text.encode("utf-8")
    except UnicodeError:
        return "", Status.UNDECODABLE
    return (text, Status.KEPT) if len(text) >= min_characters else ("", Status.SHORT)


def text_digest(text: str) -> bytes:
    """Return 16 bytes that are equal for equal texts: xxh3_128 of the UTF-8 bytes."""
    return xxhash.xxh3_128_digest(text.encode("utf-8"))


def name_hash(name: str) -> int:
    """Return a document's rank in 0..2**64-1 from its name alone (xxh3_64).

    Low ranks are held out and high ranks train the tokenizer, so both choices stay as they are
    when documents are added.
    """
    return xxhash.xxh3_64_intdigest(name.encode("utf-8", "surrogateescape"))
