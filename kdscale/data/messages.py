"""Conversations: what a record says, in one form, and that form as the text of a document.

A document's text is then the JSON of its messages, so that reading, cleaning, the search for
duplicates and Ray's blocks need to know nothing of conversations but how to get at their parts.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from kdscale.config.chat import ChatConfig
from kdscale.errors import KdscaleError

_ROLES = {
    **{role: role for role in ("system", "developer", "user", "assistant", "tool")},
    "human": "user",
    "gpt": "assistant",
}


@dataclass(frozen=True)
class Message:
    """One turn. `is_target`: an answer that is to be learned."""

    role: str
    content: str
    is_target: bool


def read_conversation(record: Mapping[str, Any], config: ChatConfig, name: str) -> str | None:
    """The text of a document from the config's columns of a record; None where a column that should
    hold JSON holds something else.

    KdscaleError for what is no conversation, for an unknown role, and for calls of tools.
    """
    if config.prompt is None or config.completion is None:
        found = _messages(record[config.field], config, name, "user")
        return None if found is None else dump(found)
    asked = _messages(record[config.prompt], config, name, "user", plain=True)
    answer = _messages(record[config.completion], config, name, "assistant", plain=True)
    assert asked is not None
    assert answer is not None
    # What the prompt brings of answers was given by someone else.
    return dump([Message(each.role, each.content, False) for each in asked] + answer)


def dump(messages: Iterable[Message]) -> str:
    """The text of a document; equal for equal conversations."""
    return json.dumps([[m.role, m.content, m.is_target] for m in messages], ensure_ascii=False)


def load(text: str) -> list[Message]:
    """The inverse of `dump`."""
    return [Message(*fields) for fields in json.loads(text)]


def plain_text(text: str) -> str:
    """What a reader sees of a conversation: the messages' contents, an empty line between two."""
    return "\n\n".join(message.content for message in load(text))


def _messages(
    value: Any, config: ChatConfig, name: str, role: str, *, plain: bool = False
) -> list[Message] | None:
    """The messages of a column. A text is the JSON of them or, if `plain`, what `role` says."""
    if isinstance(value, str) and plain:
        return [Message(role, value, role == "assistant")]
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except ValueError:
            return None
    if value is None:
        return []
    if not isinstance(value, list):
        raise _not_a_conversation(name, f"a {type(value).__name__} and no list of messages")
    return [_message(each, config, name) for each in value]


def _message(value: Any, config: ChatConfig, name: str) -> Message:
    if not isinstance(value, Mapping):
        raise _not_a_conversation(name, f"a {type(value).__name__} for a message")
    said, content = ("from", "value") if "from" in value else ("role", "content")
    if said not in value or content not in value:
        raise _not_a_conversation(name, f"a message with the fields {sorted(value)}")
    if value.get("tool_calls"):
        raise _not_a_conversation(name, "calls of tools, which are not supported")
    role = _role(value[said], config, name)
    # `weight` is OpenAI's way to say that an answer is not to be learned, `train` Axolotl's.
    is_wanted = value.get("weight") != 0 and value.get("train") is not False
    return Message(role, _content(value[content], name), role == "assistant" and is_wanted)


def _role(value: Any, config: ChatConfig, name: str) -> str:
    role = _ROLES.get(config.roles.get(str(value), str(value)))
    if role is None:
        raise KdscaleError(
            f"A message of {name} is by {value!r}, which is no known role.",
            f"Say in data.chat.roles which role it means: {', '.join(_ROLES)}.",
        )
    return role


def _content(value: Any, name: str) -> str:
    """The text of a message, which may come in parts of type `text`."""
    if value is None:
        return ""
    if isinstance(value, str):
        return value
    parts = value if isinstance(value, list) else [value]
    if not all(isinstance(part, Mapping) and isinstance(part.get("text"), str) for part in parts):
        raise _not_a_conversation(name, "a message that is no text")
    return "".join(part["text"] for part in parts)


def _not_a_conversation(name: str, what: str) -> KdscaleError:
    return KdscaleError(
        f"{name} holds {what}.",
        "Give a list of messages, {role, content} or {from, value} each, in data.chat.field, or "
        "columns of texts or messages in data.chat.prompt and data.chat.completion.",
    )
