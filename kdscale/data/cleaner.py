"""All that is done to a document's text: decoding, levelling, the configured steps, last checks."""

from typing import NamedTuple

from kdscale.config.data import DataConfig
from kdscale.data.cleaning import FIRST_STEP, Status, admit, clean
from kdscale.data.near import band_hashes
from kdscale.data.steps import make_steps


class Cleaned(NamedTuple):
    """What became of a document; the text is empty unless the status is KEPT."""

    text: str
    status: int  # a Status, or FIRST_STEP + the number of the step that dropped it
    changed: int  # a bit for each step that changed it
    bands: bytes | None  # uint64 each, for the search for near duplicates


class Cleaner:
    """The cleaning of a config. KdscaleError where a step cannot be made."""

    def __init__(self, config: DataConfig) -> None:
        self._steps = make_steps(config.cleaning)
        self._min_characters = config.min_characters
        self._near = config.near_duplicates

    def __call__(self, raw: bytes | str | None) -> Cleaned:
        """Of one document, as its container has it."""
        text, status = admit(raw, 1)
        if status is not Status.KEPT:
            return Cleaned("", status, 0, None)
        changed = 0
        for number, step in enumerate(self._steps):
            found = step(text)
            if found is None:
                return Cleaned("", FIRST_STEP + number, changed, None)
            if found != text:
                # A step may leave blanks where it took something away.
                text, changed = clean(found), changed | 1 << number
        if len(text) < self._min_characters:
            return Cleaned("", Status.SHORT, changed, None)
        bands = None if self._near is None else band_hashes(text, self._near).tobytes()
        return Cleaned(text, Status.KEPT, changed, bands)
