"""Conversations as lists of messages, and as the JSON text that stands for them.

A conversation's text is the JSON of its messages, so that reading, cleaning, deduplication and
Ray's blocks handle it as any document.
"""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from kdscale.config.chat import ChatConfig
from kdscale.errors import KdscaleError

_ROLES = {
    **{role: role for role in ("system", "developer", "user", "assistant", "tool")},
    "human": "user",
    "gpt": "assistant",
    "model": "assistant",
}
TOOLS = "tools"
"""Column beside the messages with the tools that the assistant may call, as JSON schemas."""

# `weight` is OpenAI's way to say that an answer is not to be learned, `train` Axolotl's.
_FLAGS = ("weight", "train")
_CALLS = "tool_calls"
_TEXT_PARTS = ("text", "input_text", "output_text", None)


@dataclass(frozen=True)
class Message:
    """One turn; `is_target` marks an answer to learn."""

    role: str
    content: str
    is_target: bool
    more: Mapping[str, Any] = field(default_factory=dict)
    """Other fields that hold something, such as a reasoning trace, for the template to write."""

    @property
    def strings(self) -> list[str]:
        """Content and all texts in the other fields."""
        return [self.content, *_strings(self.more)]

    def with_strings(self, strings: Iterable[str]) -> "Message":
        """Return the same message with other texts, in the order of `strings`."""
        texts = iter(strings)
        return replace(self, content=next(texts), more=_replaced(self.more, texts))


@dataclass(frozen=True)
class Conversation:
    """Messages, and the tools that the assistant may call, as JSON schemas."""

    messages: Sequence[Message]
    tools: Sequence[Mapping[str, Any]] = ()

    @property
    def strings(self) -> list[str]:
        """All texts of the messages and the tools."""
        return [text for each in self.messages for text in each.strings] + self.tool_strings

    @property
    def tool_strings(self) -> list[str]:
        """All texts of the tools."""
        return [text for tool in self.tools for text in _strings(tool)]

    def first(self, count: int) -> "Conversation":
        """Return the conversation up to its first `count` messages."""
        return replace(self, messages=self.messages[:count])

    def with_message(self, at: int, message: Message) -> "Conversation":
        """Return the conversation with another message at number `at`."""
        return replace(self, messages=[*self.messages[:at], message, *self.messages[at + 1 :]])


def read_conversation(
    record: Mapping[str, Any], config: ChatConfig, name: str
) -> Conversation | None:
    """Return the messages in the config's columns of a record, and its tools.

    None where a column that should hold JSON does not. Raises KdscaleError for a value that is no
    conversation, an unknown role, content that is no text, and tools that are no JSON schemas.
    """
    if config.prompt is None or config.completion is None:
        messages = _messages(record[config.field], config, name, "user")
    else:
        asked = _messages(record[config.prompt], config, name, "user", plain=True)
        answer = _messages(record[config.completion], config, name, "assistant", plain=True)
        assert asked is not None
        assert answer is not None
        # Answers in the prompt are not targets.
        messages = [replace(each, is_target=False) for each in asked] + answer
    if messages is None:
        return None
    return Conversation(messages, () if TOOLS in config.ignore else _tools(record, config, name))


def dump(conversation: Conversation) -> str:
    """Return the text of a document; equal for equal conversations."""
    fields: Any = [
        [m.role, m.content, m.is_target, *([m.more] if m.more else [])]
        for m in conversation.messages
    ]
    if conversation.tools:
        fields = {"messages": fields, "tools": list(conversation.tools)}
    return json.dumps(fields, ensure_ascii=False)


def load(text: str) -> Conversation:
    """Invert `dump`."""
    fields = json.loads(text)
    messages, tools = (fields, ()) if isinstance(fields, list) else fields.values()
    return Conversation([Message(*each) for each in messages], tools)


def plain_text(text: str) -> str:
    """Return the messages' texts, an empty line between two."""
    return "\n\n".join(each for message in load(text).messages for each in message.strings)


def is_nothing(value: Any) -> bool:
    """Tell whether a field is empty: null, no elements, or columns of nulls."""
    if isinstance(value, Mapping):
        return all(map(is_nothing, value.values()))
    return value is None or (isinstance(value, str | list | tuple) and not value)


def _strings(value: Any) -> Iterator[str]:
    """Yield the texts in a JSON value, in its order."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for each in value.values():
            yield from _strings(each)
    elif isinstance(value, list):
        for each in value:
            yield from _strings(each)


def _replaced(value: Any, strings: Iterator[str]) -> Any:
    """Return the same value with the next of `strings` in the place of each text."""
    if isinstance(value, str):
        return next(strings)
    if isinstance(value, Mapping):
        return {key: _replaced(each, strings) for key, each in value.items()}
    return [_replaced(each, strings) for each in value] if isinstance(value, list) else value


def _tools(record: Mapping[str, Any], config: ChatConfig, name: str) -> list[Any]:
    """Return the JSON schemas beside a record's messages, in the form that templates expect."""
    value = None if TOOLS in config.columns else record.get(TOOLS)
    if isinstance(value, str) and value:
        try:
            value = json.loads(value)
        except (ValueError, RecursionError) as error:
            raise _not_tools(name, f"text that is no JSON ({error})") from error
    if value is None or is_nothing(value):
        return []
    if not isinstance(value, list) or not all(isinstance(each, Mapping) for each in value):
        kinds = sorted({type(each).__name__ for each in value if not isinstance(each, Mapping)})
        what = f"a list with {', '.join(kinds)}" if isinstance(value, list) else str(type(value))
        raise _not_tools(name, what)
    plain = [without_nulls(_plain(each, f"{name}: {TOOLS!r}")) for each in value]
    # A function alone is what OpenAI had before there were other tools.
    return [
        each if "function" in each or "name" not in each else {"type": "function", "function": each}
        for each in plain
    ]


def without_nulls(value: Any) -> Any:
    """Return a JSON value without the fields that are null, at any depth.

    Arrow gives each record of a column the fields of all the others.
    """
    if isinstance(value, Mapping):
        return {key: without_nulls(each) for key, each in value.items() if each is not None}
    return [without_nulls(each) for each in value] if isinstance(value, list) else value


def _called(value: Any) -> Any:
    """Return calls of tools with arguments as objects, where they are the JSON text of one.

    OpenAI has text; templates write objects as JSON, and text as a string in quotes.
    """
    if isinstance(value, list):
        return [_called(each) for each in value]
    if not isinstance(value, Mapping):
        return value
    found = {key: _called(each) if key == "function" else each for key, each in value.items()}
    if isinstance(found.get("arguments"), str):
        try:
            arguments = json.loads(found["arguments"])
        except (ValueError, RecursionError):
            return found
        if isinstance(arguments, dict):
            found["arguments"] = arguments
    return found


def _not_tools(name: str, what: str) -> KdscaleError:
    return KdscaleError(
        f"The field {TOOLS!r} of {name} holds {what} and no list of JSON schemas.",
        "Give a list of {type: function, function: {name, description, parameters}}, or its JSON, "
        "or name the field in data.chat.ignore where it may be left out.",
    )


def _messages(
    value: Any, config: ChatConfig, name: str, role: str, *, plain: bool = False
) -> list[Message] | None:
    """Return the messages of a column.

    A string is their JSON or, if `plain`, one message of `role`.
    """
    if isinstance(value, str) and plain:
        return [Message(role, value, role == "assistant")]
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            return None
    if value is None:
        return []
    if not isinstance(value, list):
        raise _not_a_conversation(name, f"a {type(value).__name__} and no list of messages")
    return [_message(each, config, name, number) for number, each in enumerate(value)]


def _message(value: Any, config: ChatConfig, name: str, number: int) -> Message:
    where = f"messages[{number}] of {name}"
    if not isinstance(value, Mapping):
        raise _not_a_conversation(name, f"a {type(value).__name__} for a message")
    said, content = ("from", "value") if "from" in value else ("role", "content")
    if said not in value or content not in value:
        raise _not_a_conversation(name, f"a message with the fields {sorted(map(str, value))}")
    role = _role(value[said], config, name)
    is_wanted = _is_wanted(value, config, role, where)
    known = {said, content, *_FLAGS, *config.ignore}
    more = {
        str(key): without_nulls(_plain(each, f"{where}: {key!r}"))
        for key, each in value.items()
        if key not in known and not is_nothing(each)
    }
    if _CALLS in more:
        more[_CALLS] = _called(more[_CALLS])
    text = _content(value[content], config, where)
    return Message(role, text, role == "assistant" and is_wanted, more)


def _is_wanted(value: Mapping[str, Any], config: ChatConfig, role: str, where: str) -> bool:
    """Tell whether the record's flags keep the message among the targets.

    Raises KdscaleError for other weights than 0 and 1, and for one on a message that is no answer.
    """
    is_wanted = True
    for flag in _FLAGS:
        given = value.get(flag)
        if flag in config.ignore or given is None:
            continue
        if given not in (0, 1) or isinstance(given, str):
            raise KdscaleError(
                f"{where} has {flag}: {given!r}; an answer is learned or not, by 1 or 0, true or "
                "false.",
                "Write one of these, or name the field in data.chat.ignore.",
            )
        if given and role != "assistant":
            raise KdscaleError(
                f"{where} is by {role!r} and has {flag}: {given!r}, and only an assistant's "
                "answers are learned.",
                "Take the field out of it, or name it in data.chat.ignore.",
            )
        is_wanted = is_wanted and bool(given)
    return is_wanted


def _plain(value: Any, where: str) -> Any:
    """Return a field's value as JSON has it. Raises KdscaleError for others, such as images."""
    try:
        return json.loads(json.dumps(value))
    except (TypeError, ValueError) as error:
        raise KdscaleError(
            f"{where} holds what cannot be rendered: {error}",
            "Take it out of the data, or name it in data.chat.ignore.",
        ) from error


def _role(value: Any, config: ChatConfig, name: str) -> str:
    role = _ROLES.get(config.roles.get(str(value), str(value)))
    if role is None:
        raise KdscaleError(
            f"A message of {name} is by {value!r}, which is no known role.",
            f"Say in data.chat.roles which role it means: {', '.join(_ROLES)}.",
        )
    return role


def _content(value: Any, config: ChatConfig, where: str) -> str:
    """Return the text of a message, which may come in parts of type `text`."""
    if value is None:
        return ""
    if isinstance(value, str):
        return value
    parts = value if isinstance(value, list) else [value]
    for part in parts:
        if not isinstance(part, Mapping) or not isinstance(part.get("text"), str):
            kind = part.get("type") if isinstance(part, Mapping) else type(part).__name__
            raise _not_a_conversation(where, f"a message that is no text: a part is {kind!r}")
        known = {"text", "type", *config.ignore}
        others = [key for key, each in part.items() if key not in known and not is_nothing(each)]
        if part.get("type") not in _TEXT_PARTS or others:
            fields = f" with {', '.join(others)}" if others else ""
            what = f"a message that is no text alone: a part is {part.get('type')!r}{fields}"
            raise _not_a_conversation(where, what)
    return "".join(part["text"] for part in parts)


def _not_a_conversation(name: str, what: str) -> KdscaleError:
    return KdscaleError(
        f"{name} holds {what}.",
        "Give a list of messages, {role, content} or {from, value} each, in data.chat.field, or "
        "columns of texts or messages in data.chat.prompt and data.chat.completion.",
    )
