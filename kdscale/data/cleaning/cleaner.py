"""All that is done to a document's text: decoding, levelling, the configured steps, last checks."""

from typing import NamedTuple

from kdscale.config.data import DataConfig
from kdscale.data.chat.messages import Message, dump, load
from kdscale.data.cleaning.minhash import band_hashes
from kdscale.data.cleaning.normalise import FIRST_STEP, Status, admit, clean
from kdscale.data.cleaning.steps import make_steps

# Between the messages of a conversation where it is looked at as one text.
_SEPARATOR = "\n\n"


class Cleaned(NamedTuple):
    """What became of a document; the text is empty unless the status is KEPT."""

    text: str
    status: int  # a Status, or FIRST_STEP + the number of the step that dropped it
    changed: int  # a bit for each step that changed it
    bands: bytes | None  # uint64 each, for the search for near duplicates


class Cleaner:
    """The cleaning of a config. KdscaleError where a step cannot be made.

    Of a conversation, what changes text goes over each text of each message, its content as its
    reasoning, and what decides about a document looks at all of them together.
    """

    def __init__(self, config: DataConfig) -> None:
        self._steps = make_steps(config.cleaning)
        self._decides = [step.kind in ("language", "length") for step in config.cleaning]
        self._min_characters = config.min_characters
        self._near = config.near_duplicates
        self._are_conversations = config.chat is not None

    def __call__(self, raw: bytes | str | None) -> Cleaned:
        """Of one document, as its container has it."""
        messages: list[Message] = []
        if self._are_conversations and isinstance(raw, str):
            messages = load(raw)
            admitted = [admit(each, 0) for message in messages for each in message.strings]
            status = max((status for _, status in admitted), default=Status.SHORT)
            # Many templates take outer blanks away: they belong to nobody.
            parts = [text.strip() for text, _ in admitted]
        else:
            text, status = admit(raw, 1)
            parts = [text]
        if status is not Status.KEPT:
            return Cleaned("", status, 0, None)
        return self._cleaned(parts, messages)

    def _cleaned(self, parts: list[str], messages: list[Message]) -> Cleaned:
        """Of the texts of a document: one, or those of each of the messages."""
        changed = 0
        for number in range(len(self._steps)):
            found = self._step(number, parts)
            if found is None:
                return Cleaned("", FIRST_STEP + number, changed, None)
            if found != parts:
                # A step may leave blanks where it took something away.
                parts = [clean(part).strip() if messages else clean(part) for part in found]
                changed |= 1 << number
        text = _SEPARATOR.join(parts)
        if len(text) < self._min_characters:
            return Cleaned("", Status.SHORT, changed, None)
        bands = None if self._near is None else band_hashes(text, self._near).tobytes()
        if messages:
            texts = iter(parts)
            text = dump([message.with_strings(texts) for message in messages])
        return Cleaned(text, Status.KEPT, changed, bands)

    def _step(self, number: int, parts: list[str]) -> list[str] | None:
        """The texts after a step, None where it drops the document."""
        step = self._steps[number]
        if self._decides[number]:
            return None if step(_SEPARATOR.join(parts)) is None else parts
        found = [step(part) for part in parts]
        return [part for part in found if part is not None]
