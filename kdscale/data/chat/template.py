"""Chat templates: a conversation as the model sees it, and which of its characters are answers.

A template that marks the answers itself, with `{% generation %}`, is trusted. Of any other, the
answers are found by rendering: the difference between a conversation that ends before an answer,
with the prompt for one, and the same conversation after it. That is exact only where a
conversation's beginning is rendered as the beginning of the conversation, and where an answer's
text is in it unchanged. Templates that remove earlier reasoning, or change an answer, are refused.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NoReturn

import numpy as np

from kdscale.config.chat import ChatConfig
from kdscale.config.text import decode_text
from kdscale.data.chat.messages import Message
from kdscale.errors import KdscaleError
from kdscale.store import file_at

CHATML = """\
{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' }}\
{% if message['role'] == 'assistant' %}\
{% generation %}{{ message['content'] + '<|im_end|>' }}{% endgeneration %}\
{% else %}{{ message['content'] + '<|im_end|>' }}{% endif %}{{ '\\n' }}{% endfor %}\
{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"""
"""The template of a tokenizer that is trained (OpenAI's Chat Markup Language)."""

CHATML_TOKENS = ("<|im_start|>", "<|im_end|>")

Span = tuple[int, int]
"""The characters from the first number up to the second."""

_MARKS_ANSWERS = re.compile(r"\{%-?\s*generation\s*-?%\}")
# Templates of the Llama 3 family write a date, and fall back to this one.
_DATE = "26 Jul 2024"
# Takes the place of an answer, to find the text around it.
_MARKER = "\ue000"
_CHANGES_EARLIER = "changes earlier turns of a conversation with later ones"
_CHANGES_TEXT = "changes the text of an answer"
_OWN_TEMPLATE = "Give a template in data.chat.template that "


@dataclass(frozen=True)
class ChatTemplate:
    """A template in Jinja and its variables beside the messages."""

    text: str
    tokens: Mapping[str, str]
    """The tokenizer's special tokens by their names, such as `eos_token`."""

    specials: tuple[str, ...]
    """Spelling of all special tokens."""


class CannotRenderError(Exception):
    """Conversation that the template refuses, as where roles do not alternate."""


def read_template(config: ChatConfig) -> str | None:
    """Return the text of the config's own template, if it has one.

    Raises KdscaleError where its file does not exist.
    """
    path = config.template_file
    if path is None:
        return config.template
    store, name = file_at(path)
    if not store.exists(name):
        raise KdscaleError(
            f"The chat template {path!r} is not there.",
            "Give data.chat.template the path or URL of a file, or the Jinja text itself.",
        )
    return decode_text(store.get(name), f"The chat template {path!r}")


def template_to_train(config: ChatConfig) -> ChatTemplate:
    """Return the template of a tokenizer that is yet to be trained."""
    start, end = CHATML_TOKENS
    return ChatTemplate(
        read_template(config) or CHATML, {"bos_token": start, "eos_token": end}, CHATML_TOKENS
    )


def check_template(template: ChatTemplate) -> None:
    """Refuse a template that renders no conversation, or other rows tomorrow."""
    if "strftime_now" in template.text and "date_string" not in template.text:
        raise KdscaleError(
            "The chat template writes the date of today: rows would differ from day to day.",
            _OWN_TEMPLATE + "writes none, or a fixed one.",
        )
    question, answer = Message("user", "Why?", False), Message("assistant", "So.", True)
    try:
        text, spans = render_answers(template, [question, answer])
    except CannotRenderError as error:
        raise KdscaleError(
            f"The chat template cannot render a question and an answer: {error}",
            "Correct it, or give another one in data.chat.template.",
        ) from error
    if not any(answer.content in text[start:end] for start, end in spans):
        raise KdscaleError(
            "The chat template has {% generation %}, but not around the answer of a question.",
            _OWN_TEMPLATE + "has it around each answer, and not in a macro.",
        )


def contains_special_token(template: ChatTemplate, messages: Sequence[Message]) -> bool:
    """Tell whether a message spells a special token, which would end a turn."""
    texts = [text for message in messages for text in message.strings]
    return any(token in text for text in texts for token in template.specials)


def render_answers(template: ChatTemplate, messages: Sequence[Message]) -> tuple[str, list[Span]]:
    """Render a conversation; return its text and the spans of the answers to learn.

    A span is what an assistant generates after the prompt for its turn, up to the token that ends
    it. Raises KdscaleError for templates that the module refuses and for a field that the template
    does not write, CannotRenderError for a conversation that the template refuses.
    """
    require_written(template, messages)
    wanted = [
        at
        for at, message in enumerate(messages)
        if message.is_target and (message.content or message.more)
    ]
    if _MARKS_ANSWERS.search(template.text):
        return _marked_answers(template, messages, wanted)
    text = _render(template, messages)
    return text, [_find_answer(template, messages, at, text) for at in wanted]


def require_written(
    template: ChatTemplate, messages: Sequence[Message], name: str = "a conversation"
) -> None:
    """Refuse a field beside role and content that the template does not write.

    The field leaves no trace in the conversation, or its text is not in it. `name` is the
    conversation's in messages. Raises CannotRenderError as `render_answers`.
    """
    if not any(message.more for message in messages):
        return
    text = _render(template, messages)
    for at, message in enumerate(messages):
        for field, value in message.more.items():
            less = replace(message, more={k: v for k, v in message.more.items() if k != field})
            is_there = not isinstance(value, str) or value.strip() in text
            if not is_there or text == _render_or_none(template, _with(messages, at, less)):
                raise KdscaleError(
                    f"The field {field!r} of messages[{at}] ({message.role}: "
                    f"{message.content[:60]!r}) of {name} is not written by the chat template: it "
                    "would be lost.",
                    "Take the field out of the data, name it in data.chat.ignore where it may be "
                    f"left out, or give a template in data.chat.template that writes {field!r}.",
                )


def _with(messages: Sequence[Message], at: int, message: Message) -> list[Message]:
    """Return the messages with another one at number `at`."""
    return [*messages[:at], message, *messages[at + 1 :]]


def _render_or_none(template: ChatTemplate, messages: Sequence[Message]) -> str | None:
    try:
        return _render(template, messages)
    except CannotRenderError:
        return None  # It cannot do without.


def _marked_answers(
    template: ChatTemplate, messages: Sequence[Message], wanted: list[int]
) -> tuple[str, list[Span]]:
    """Return text and spans of a template that marks the answers itself."""
    text, spans = _rendered(template, messages, marks=True)
    answers = [at for at, message in enumerate(messages) if message.role == "assistant"]
    if wanted == answers:
        return text, spans
    if len(spans) != len(answers):
        raise KdscaleError(
            f"The chat template marks {len(spans)} answers in a conversation of {len(answers)}, of "
            "which some are not to be learned.",
            _OWN_TEMPLATE + "has each answer in one {% generation %} block.",
        )
    return text, [span for at, span in zip(answers, spans, strict=True) if at in wanted]


def _find_answer(template: ChatTemplate, messages: Sequence[Message], at: int, text: str) -> Span:
    """Return the span of the answer at number `at` in the whole conversation's `text`."""
    message = messages[at]
    before = _render(template, messages[:at], prompts=True)
    after = _render(template, messages[: at + 1])
    if not (text.startswith(after) and after.startswith(before)):
        _refuse_changes(messages, at, _CHANGES_EARLIER)
    asks = before != _render(template, messages[:at])
    marked, tail = _tail(template, messages, at, replace(message, content=_MARKER))
    end = tail
    if message.more:
        # Other fields, such as tool calls, are written between the content and the end.
        end = _tail(template, messages, at, Message("assistant", _MARKER, True))[1]
    if message.content:
        if not marked.startswith(before):
            _refuse_changes(messages, at, _CHANGES_EARLIER)
        lead = marked[len(before) :]
        if after != before + lead + message.content + tail or not tail.endswith(end):
            _refuse_changes(messages, at, _CHANGES_TEXT)
    else:
        lead = ""
        if not (asks and after.endswith(end)):
            _refuse_changes(messages, at, _CHANGES_TEXT)
    # Without a prompt for the answer, the turn's heading is in `lead`, which is not generated.
    start = len(before) if asks or not lead.strip() else len(before) + len(lead)
    return start, len(after) - len(end) + _turn_end(template, end)


def _tail(
    template: ChatTemplate, messages: Sequence[Message], at: int, marked: Message
) -> tuple[str, str]:
    """Return the text before and behind the marker that is the content of `marked`."""
    rendered = _render(template, [*messages[:at], marked])
    before, found, tail = rendered.partition(_MARKER)
    if not found or _MARKER in tail:
        _refuse_changes(messages, at, _CHANGES_TEXT)
    return before, tail


def _turn_end(template: ChatTemplate, tail: str) -> int:
    """Return the length of `tail` up to its first special token, included."""
    ends = [(at, at + len(token)) for token in template.specials if (at := tail.find(token)) >= 0]
    if not ends:
        raise KdscaleError(
            f"The chat template ends an answer with {tail!r}, in which there is no special token: "
            "a student could not learn where to stop.",
            _OWN_TEMPLATE + "writes {{ eos_token }} behind each answer.",
        )
    # The longest of the tokens that start first.
    return min(ends, key=lambda end: (end[0], -end[1]))[1]


def _refuse_changes(messages: Sequence[Message], at: int, what: str) -> NoReturn:
    raise KdscaleError(
        f"The chat template {what} ({messages[at].content[:60]!r}), so that which tokens are "
        "answers cannot be found.",
        _OWN_TEMPLATE + "writes every turn as it is, or marks answers with {% generation %}.",
    )


def _render(template: ChatTemplate, messages: Sequence[Message], *, prompts: bool = False) -> str:
    return _rendered(template, messages, prompts=prompts)[0]


def _rendered(
    template: ChatTemplate,
    messages: Sequence[Message],
    *,
    prompts: bool = False,
    marks: bool = False,
) -> tuple[str, list[Span]]:
    """Render the messages as transformers' `apply_chat_template` does."""
    from jinja2 import TemplateError
    from transformers.utils.chat_template_utils import render_jinja_template

    plain: list[Any] = [
        {**each.more, "role": each.role, "content": each.content} for each in messages
    ]
    try:
        texts, spans = render_jinja_template(
            [plain],
            chat_template=template.text,
            add_generation_prompt=prompts,
            return_assistant_tokens_mask=marks,
            date_string=_DATE,
            **template.tokens,
        )
    except (TemplateError, TypeError) as error:
        raise CannotRenderError(str(error)) from error
    return texts[0], spans[0] if marks else []


def answer_tokens(text: str, offsets: np.ndarray, spans: Sequence[tuple[int, int]]) -> np.ndarray:
    """Return [n] bool: whether a token is in an answer.

    `offsets` is [n, 2] of integers, the characters of `text` that each token covers; `spans` are
    the characters of answers. A token that begins before an answer counts where only blanks precede
    the answer in it, as the model generates it first. The first token never counts, as nothing
    predicts it.
    """
    found = np.zeros(len(offsets), bool)
    # Tokens may leave a blank out of their offsets, and those of one character share it.
    ends = np.maximum.accumulate(offsets[:, 1]) if len(offsets) else offsets[:, 1]
    starts = np.minimum(offsets[:, 0], np.concatenate([[0], ends[:-1]]))
    for start, end in spans:
        inside = np.flatnonzero((starts < end) & (ends > start))
        found[inside] = True
        if len(inside) and text[starts[inside[0]] : start].strip():
            found[inside[0]] = False
    found[:1] = False
    return found
