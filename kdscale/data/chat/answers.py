"""Answers of a conversation: what an assistant is to learn, and behind which text.

A turn is the prompt that asks for an answer, which is the beginning of the conversation as the
template writes it then, and what the assistant generates behind it, up to the token that ends it.
Turns that are part of the same text are learned in it. A template that changes earlier turns, as
Qwen 3 takes away their thoughts, gives the others a text each: what is learned always stands
behind what the model sees in use.

What is generated is marked by the template itself, by kdscale's training template, or found by
rendering: the difference between a conversation that ends before an answer, with the prompt for
one, and the same conversation after it. That is exact only where an answer's text is in it
unchanged. Templates that change an answer are refused.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple, NoReturn

import numpy as np

from kdscale.data.chat.messages import Conversation, Message
from kdscale.data.chat.template import (
    CannotRenderError,
    ChatTemplate,
    Span,
    render,
    render_marked,
)
from kdscale.data.chat.training import training_templates
from kdscale.errors import KdscaleError

RENDERING = 2
"""Raised when the same conversations would give other texts or targets: fingerprints have it."""

# Takes the place of an answer, to find the text around it.
_MARKER = "\ue000"
# Of a message of the role tool: which call it answers, by number and by name.
_LINKS = ("tool_call_id", "name")
_SHOWN = 40  # characters around a difference
_OWN_TEMPLATE = "Give a template in data.chat.template that "


class Turn(NamedTuple):
    """An answer as the model generates it, up to the token that ends it."""

    at: int  # number of the message
    prompt: str  # what comes before
    answer: str


class Rendering(NamedTuple):
    """A text to learn from."""

    text: str
    spans: list[Span]  # of the answers to learn
    answers: list[int]  # the numbers of their messages


def check_template(template: ChatTemplate) -> None:
    """Refuse a template that renders no conversation, or in which answers cannot be found."""
    question, answer = Message("user", "Why?", False), Message("assistant", "So.", True)
    try:
        [found] = render_answers(template, Conversation([question, answer]))
    except CannotRenderError as error:
        raise KdscaleError(
            f"The chat template cannot render a question and an answer: {error}",
            "Correct it, or give another one in data.chat.template.",
        ) from error
    if not any(answer.content in found.text[start:end] for start, end in found.spans):
        raise KdscaleError(
            "The chat template has {% generation %}, but not around the answer of a question.",
            _OWN_TEMPLATE + "has it around each answer, and not in a macro.",
        )


def render_answers(template: ChatTemplate, talk: Conversation) -> list[Rendering]:
    """Return the texts of a conversation; each answer to learn is in one of them, once.

    Answers without any text are not learned. Raises KdscaleError for templates that the module
    refuses and for a field that the template does not write, CannotRenderError for a conversation
    that the template refuses.
    """
    require_written(template, talk)
    wanted = [at for at, each in enumerate(talk.messages) if _is_wanted(each)]
    text = render(template, talk)
    if template.training is None and template.marks_answers:
        spans, answers = render_marked(template, template.text, talk)[1], _answers(talk)
        if len(spans) != len(answers):
            return [_marked_otherwise(text, spans, answers, wanted)]
        turns = [_turn_by_itself(template, talk, at) for at in wanted]
    else:
        turns = [_turn(template, talk, at) for at in wanted]
    found, left = _in_text(text, turns)
    if found.answers or not left:
        # The first text is the whole conversation, as all of it is where nothing is changed.
        renderings, turns = [found], left
    else:
        renderings = []
    while turns:
        found, turns = _in_text(turns[-1].prompt + turns[-1].answer, turns)
        renderings.append(found)
    return renderings


def _is_wanted(message: Message) -> bool:
    return message.is_target and bool(message.content or message.more)


def _in_text(text: str, turns: Sequence[Turn]) -> tuple[Rendering, list[Turn]]:
    """Return `text` with those of the turns that it begins with, and the turns that are left."""
    inside = [turn for turn in turns if text.startswith(turn.prompt + turn.answer)]
    spans = [(len(turn.prompt), len(turn.prompt) + len(turn.answer)) for turn in inside]
    answers = [turn.at for turn in inside]
    return Rendering(text, spans, answers), [turn for turn in turns if turn.at not in answers]


def require_written(
    template: ChatTemplate, talk: Conversation, name: str = "a conversation"
) -> None:
    """Refuse tools, and fields beside role and content, that the template does not write.

    A field leaves no trace in the conversation that ends with its message, or its text is not in
    it: later turns may take it away, as they do in use. Which call a tool answers need not be
    written: its place says so. `name` is the conversation's in messages. Raises CannotRenderError
    as `render_answers`.
    """
    if talk.tools and render(template, talk) == render(template, replace(talk, tools=())):
        raise KdscaleError(
            f"{len(talk.tools)} tools of {name} are not written by the chat template: they would "
            "be lost.",
            "Name the field in data.chat.ignore where they may be left out, or give a template in "
            "data.chat.template that writes `tools`.",
        )
    seen = set()
    for at, message in enumerate(talk.messages):
        for field, value in message.more.items():
            # Messages of one form are written alike: a long one would be rendered for each.
            form = (message.role, field, *sorted(message.more), bool(message.content))
            if (message.role == "tool" and field in _LINKS) or form in seen:
                continue
            seen.add(form)
            _require_field(template, talk.first(at + 1), field, value, name)


def _require_field(
    template: ChatTemplate, until: Conversation, field: str, value: Any, name: str
) -> None:
    """Refuse a field of the last message that the template does not write."""
    at, message = len(until.messages) - 1, until.messages[-1]
    less = replace(message, more={k: v for k, v in message.more.items() if k != field})
    text = render(template, until)
    is_there = not isinstance(value, str) or value.strip() in text
    if not is_there or text == _render_or_none(template, until.with_message(at, less)):
        raise KdscaleError(
            f"The field {field!r} of messages[{at}] ({message.role}: {message.content[:60]!r}) of "
            f"{name} is not written by the chat template: it would be lost.",
            "Take the field out of the data, name it in data.chat.ignore where it may be left out, "
            f"or give a template in data.chat.template that writes {field!r}.",
        )


def _render_or_none(template: ChatTemplate, talk: Conversation) -> str | None:
    try:
        return render(template, talk)
    except CannotRenderError:
        return None  # It cannot do without.


def _turn_by_itself(template: ChatTemplate, talk: Conversation, at: int) -> Turn:
    """Return the answer at number `at` as a template that marks the answers has it."""
    text, spans = render_marked(template, template.text, talk.first(at + 1))
    start, end = spans[-1]
    return Turn(at, text[:start], text[start:end])


def _marked_otherwise(
    text: str, spans: list[Span], answers: list[int], wanted: list[int]
) -> Rendering:
    """Return the text of a template that marks more or less than one part of each answer."""
    if wanted != answers:
        raise KdscaleError(
            f"The chat template marks {len(spans)} answers in a conversation of {len(answers)}, of "
            "which some are not to be learned.",
            _OWN_TEMPLATE + "has each answer in one {% generation %} block.",
        )
    return Rendering(text, spans, wanted)


def _answers(talk: Conversation) -> list[int]:
    """Return the numbers of the assistant's messages."""
    return [at for at, message in enumerate(talk.messages) if message.role == "assistant"]


def _turn(template: ChatTemplate, talk: Conversation, at: int) -> Turn:
    """Return the answer at number `at` behind its prompt."""
    until, message = talk.first(at + 1), talk.messages[at]
    prompt, after = render(template, talk.first(at), prompt=True), render(template, until)
    found = _marked_turn(template, until, prompt, after)
    turn = found or _found_turn(template, until, prompt, after)
    if _letters(message.content) not in _letters(turn.answer) and _letters(
        message.content
    ) not in _letters(turn.prompt.removeprefix(render(template, talk.first(at))) + turn.answer):
        raise KdscaleError(
            f"The chat template leaves out the text {message.content[:60]!r} of an answer, as "
            "beside its calls of tools: it would be lost.",
            "Take the text out of the data, or give a template in data.chat.template that writes "
            "it.",
        )
    return turn


def _letters(text: str) -> str:
    """Return text without its blanks, which templates may set anew around thoughts."""
    return "".join(text.split())


def _marked_turn(
    template: ChatTemplate, until: Conversation, prompt: str, after: str
) -> Turn | None:
    """Return the last answer as the training template marks it.

    None where there is no such template, or it renders the conversation otherwise.
    """
    if template.training is None:
        return None
    try:
        text, spans = render_marked(template, training_templates()[template.training], until)
    except CannotRenderError:
        return None
    if text != after or len(spans) != len(_answers(until)):
        return None
    start, end = spans[-1]
    if after.startswith(prompt):
        # The prompt may have what else is the answer's beginning, such as thoughts of none.
        return Turn(len(until.messages) - 1, prompt, after[max(start, len(prompt)) : end])
    # The template has moved what comes earlier, but asks with the same words.
    asks = prompt[len(prompt) - _common_start(prompt[::-1], after[:start][::-1]) :]
    if not any(token in asks for token in template.specials):
        return None
    return Turn(len(until.messages) - 1, prompt, after[start:end])


def _common_start(one: str, other: str) -> int:
    """Return how many characters two texts have in common from the beginning."""
    differs = (at for at, pair in enumerate(zip(one, other, strict=False)) if pair[0] != pair[1])
    return next(differs, min(len(one), len(other)))


def _found_turn(template: ChatTemplate, until: Conversation, prompt: str, after: str) -> Turn:
    """Return the last answer as it is found by rendering."""
    at, message = len(until.messages) - 1, until.messages[-1]
    if not after.startswith(prompt):
        _refuse_prompt(message, prompt, after)
    asks = prompt != render(template, until.first(at))
    # Without content or with other fields, such as tool calls, the end is that of a plain answer.
    _, end = _around(template, until, Message("assistant", _MARKER, True))
    lead = ""
    if message.content:
        marked, tail = _around(template, until, replace(message, content=_MARKER))
        if not marked.startswith(prompt):
            _refuse_prompt(message, prompt, marked)
        lead = marked[len(prompt) :]
        end = end if message.more else tail
        if after != prompt + lead + message.content + tail or not tail.endswith(end):
            _refuse_changes(message)
    elif not (asks and after.endswith(end)):
        _refuse_changes(message)
    # Without a prompt for the answer, the turn's heading is in `lead`, which is not generated.
    start = len(prompt) if asks or not lead.strip() else len(prompt) + len(lead)
    stop = len(after) - len(end) + _turn_end(template, end)
    return Turn(at, after[:start], after[start:stop])


def _around(template: ChatTemplate, until: Conversation, marked: Message) -> tuple[str, str]:
    """Return the text before and behind the marker that is the last message's content."""
    rendered = render(template, until.with_message(len(until.messages) - 1, marked))
    before, found, tail = rendered.partition(_MARKER)
    if not found or _MARKER in tail:
        _refuse_changes(until.messages[-1])
    return before, tail


def _turn_end(template: ChatTemplate, tail: str) -> int:
    """Return the length of `tail` up to its first special tokens, included.

    Those that follow each other without a character between them end a turn together.
    """
    end = 0
    while True:
        starts = [(tail.find(token, end), -len(token)) for token in template.specials]
        found = [(at, at - length) for at, length in sorted(starts) if at >= 0]
        if not found or (end and found[0][0] > end):
            break
        end = found[0][1]
    if not end:
        raise KdscaleError(
            f"The chat template ends an answer with {tail!r}, in which there is no special token: "
            "a student could not learn where to stop.",
            _OWN_TEMPLATE + "writes {{ eos_token }} behind each answer.",
        )
    return end


def _refuse_changes(message: Message) -> NoReturn:
    raise KdscaleError(
        f"The chat template changes the text of an answer ({message.content[:60]!r}), so that "
        "which tokens are answers cannot be found.",
        _OWN_TEMPLATE + "writes every turn as it is, or marks answers with {% generation %}.",
    )


def _refuse_prompt(message: Message, prompt: str, after: str) -> NoReturn:
    """Refuse an answer that does not stand behind the prompt for it."""
    same = _common_start(prompt, after)
    start, end = max(0, same - _SHOWN), same + _SHOWN
    raise KdscaleError(
        "The chat template changes earlier turns of a conversation with later ones: it asks for "
        f"the answer {message.content[:_SHOWN]!r} with {prompt[start:end]!r}, and writes it behind "
        f"{after[start:end]!r}, so that which tokens are answers cannot be found.",
        "Take out of data.chat.variables what changes the prompt, such as enable_thinking. Or "
        + _OWN_TEMPLATE[0].lower()
        + _OWN_TEMPLATE[1:]
        + "writes every turn as it is, or marks answers with {% generation %}.",
    )


def answer_tokens(text: str, offsets: np.ndarray, spans: Sequence[Span]) -> np.ndarray:
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
