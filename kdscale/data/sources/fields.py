"""Fields of a record: text or conversation, and label."""

from collections.abc import Iterable, Mapping
from contextlib import suppress
from typing import Any, NamedTuple

from kdscale.config.chat import ChatConfig
from kdscale.data.chat.answers import require_written
from kdscale.data.chat.messages import TOOLS, dump, is_nothing, read_conversation
from kdscale.data.chat.template import CannotRenderError, ChatTemplate
from kdscale.errors import KdscaleError

_LABEL = "data.labels.field"
# Beside a conversation, in the data sets of ShareGPT and OpenAI: parts of the prompt.
_OF_CONVERSATIONS = ("functions", "system")


class Document(NamedTuple):
    """A document as its container has it; of a conversation the text of `messages`."""

    name: str
    content: bytes | str | None  # None where the container is damaged there
    label: str | None = None  # None where it has none


class Fields(NamedTuple):
    """Fields to take from a record."""

    text: str
    label: str | None
    chat: ChatConfig | None = None
    template: ChatTemplate | None = None
    """Template of conversations, where known: a field that it does not write is refused."""

    @property
    def needed(self) -> list[str]:
        """Columns that must exist."""
        return [name for name, _ in self._options]

    @property
    def contents(self) -> list[str]:
        """Columns that hold the document."""
        return [self.text] if self.chat is None else self.chat.columns

    def columns(self, have: Iterable[str]) -> list[str]:
        """Return the columns to read of those that a table has."""
        names = self.needed
        more = [name for name in (TOOLS, *self._beside) if name in set(have) - set(names)]
        return names if self.chat is None else names + more

    @property
    def _options(self) -> list[tuple[str, str]]:
        """Columns, each with the option that names it."""
        option = "`text_field` of the source" if self.chat is None else "data.chat"
        found = [(name, option) for name in self.contents]
        return found if self.label is None else [*found, (self.label, _LABEL)]

    @property
    def _beside(self) -> list[str]:
        if self.chat is None:
            return []
        return [name for name in _OF_CONVERSATIONS if name not in self.chat.ignore]

    def lacks(self, have: Iterable[str]) -> bool:
        """Tell whether a record or a table misses a needed column."""
        known = set(have)
        return any(name not in known for name, _ in self._options)

    def require(self, have: Iterable[str], where: str, but: str = "") -> None:
        """Refuse a record or a table without the needed columns; `but` adds a likely cause."""
        known = list(have)
        for name, option in self._options:
            if name not in known:
                raise KdscaleError(
                    f"{where} has no field {name!r}, only {_listed(known)}.",
                    f"Set {option} to the field that holds it{but}.",
                )

    def unwrap(self, value: Any) -> list[Any] | None:
        """Return the records in an object's one list of them; None for other objects."""
        if not isinstance(value, dict) or not self.lacks(value):
            return None
        lists = [each for each in value.values() if isinstance(each, list) and each]
        found = [each for each in lists if all(map(self._is_record, each))]
        return found[0] if len(found) == 1 else None

    def _is_record(self, value: Any) -> bool:
        return isinstance(value, dict) and not self.lacks(value)

    def document(self, record: Mapping[str, Any], name: str) -> Document:
        """Return the document of a record; null is an empty document, or no label."""
        label = None if self.label is None else record[self.label]
        if label is not None and not isinstance(label, str | int):
            raise KdscaleError(
                f"The field {self.label!r} of {name} holds {type(label).__name__}, not a class.",
                f"Set {_LABEL} to the field that holds a class's name or number.",
            )
        return Document(name, self._content(record, name), None if label is None else str(label))

    def _content(self, record: Mapping[str, Any], name: str) -> str | bytes | None:
        if self.chat is not None:
            for field in self._beside:
                if field not in self.contents and not is_nothing(record.get(field)):
                    raise KdscaleError(
                        f"{name} has the field {field!r} beside its messages, which is not "
                        "rendered.",
                        "Write it into the messages, or name it in data.chat.ignore where it may "
                        "be left out.",
                    )
            talk = read_conversation(record, self.chat, name)
            if talk is not None and self.template is not None:
                # Templates refuse conversations, which are counted when they are rendered.
                with suppress(CannotRenderError):
                    require_written(self.template, talk, name)
            return None if talk is None else dump(talk)
        text = record[self.text]
        if text is not None and not isinstance(text, str | bytes):
            raise KdscaleError(
                f"The field {self.text!r} of {name} holds {type(text).__name__}, not text.",
                "Set `text_field` of the source to the field that holds the text.",
            )
        return "" if text is None else text


_MOST_LISTED = 20


def _listed(names: list[str]) -> str:
    """Join names for a message, some of them where there are very many."""
    shown = [readable(str(name)) for name in sorted(map(str, names))]
    more = f", ... ({len(shown)} in all)" if len(shown) > _MOST_LISTED else ""
    return (", ".join(shown[:_MOST_LISTED]) or "none") + more


def readable(text: str) -> str:
    """Return text that any terminal prints: bytes that are not UTF-8 as escapes."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")
