"""What a look at a run before it starts has found, besides what it refuses."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field


@dataclass
class Findings:
    """`notes` are sentences for a person; `checked` names what was looked at, in its order."""

    notes: list[str] = field(default_factory=list)
    checked: list[str] = field(default_factory=list)

    def note(self, text: str) -> None:
        """Add a note, once."""
        if text not in self.notes:
            self.notes.append(text)

    def unseen(self, field_name: str, what: str) -> None:
        """Say that the config's `field_name`, which names `what`, is out of sight."""
        self.note(
            f"{field_name} {what} cannot be seen from here: what depends on it is checked where "
            "the run starts."
        )

    @contextmanager
    def check(self, what: str) -> Iterator[None]:
        """What goes through in the block was checked."""
        yield
        self.checked.append(what)
