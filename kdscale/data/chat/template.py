"""Chat templates: a conversation as the model sees it."""

import datetime
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from kdscale.config.chat import ChatConfig
from kdscale.config.text import decode_text
from kdscale.data.chat.messages import Conversation
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
# Takes the place of transformers' function of this name, which writes today's date.
_DATE_MACRO = """\
{%- macro strftime_now(format) -%}\
{%- set written = namespace(text=format) -%}\
{%- for directive, value in kdscale_date.items() -%}\
{%- set written.text = written.text.replace(directive, value) -%}\
{%- endfor -%}\
{{- written.text -}}\
{%- endmacro %}
"""
_DIRECTIVES = "aAbBdmyYjUWxHIMSpcX"
_UNUSED = ("training", "variables", "date")


@dataclass(frozen=True)
class ChatTemplate:
    """A template in Jinja and its variables beside the messages."""

    text: str
    tokens: Mapping[str, str]
    """The tokenizer's special tokens by their names, such as `eos_token`."""

    specials: tuple[str, ...]
    """Spelling of all special tokens."""

    training: str | None = None
    """Name of kdscale's training template that renders the same text and marks the answers."""

    variables: Mapping[str, Any] = field(default_factory=dict)
    """Other variables of the config."""

    date: str = str(ChatConfig().date)
    """ISO date that is written in place of today's."""

    @property
    def marks_answers(self) -> bool:
        """True if the template itself says which part of its text is an answer."""
        return _MARKS_ANSWERS.search(self.text) is not None

    @property
    def writes_today(self) -> bool:
        """True if the template writes today's date, which is not the same in every run."""
        return "strftime_now" in self.text

    @property
    def summary(self) -> str:
        """Sentence on the template, for the log, the preview and the report."""
        if self.training is not None:
            found = (
                f"kdscale's training template {self.training!r}, which renders what the "
                "tokenizer's own does and marks the answers"
            )
        elif self.marks_answers:
            found = "answers are marked by the template itself"
        else:
            found = "answers are found by rendering conversations up to them"
        dated = f"; {self.date} stands for today's date" if self.writes_today else ""
        variables = ", ".join(f"{name} = {value}" for name, value in self.variables.items())
        return found + dated + (f"; {variables}" if variables else "")

    def as_dict(self) -> dict[str, Any]:
        """Return plain values for the manifest, without the fields that are as by default."""
        found = asdict(self)
        unused = [each.name for each in fields(self) if each.name in _UNUSED]
        default = ChatTemplate("", {}, ())
        for name in unused:
            if found[name] == getattr(default, name):
                del found[name]
        return found

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "ChatTemplate":
        """Invert `as_dict`, also after JSON."""
        return cls(**{**values, "specials": tuple(values["specials"])})


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


def make_template(
    config: ChatConfig, text: str, tokens: Mapping[str, str], specials: tuple[str, ...]
) -> ChatTemplate:
    """Return a template with the date and the variables of the config."""
    return ChatTemplate(
        text, tokens, specials, variables=config.variables, date=config.date.isoformat()
    )


def template_to_train(config: ChatConfig) -> ChatTemplate:
    """Return the template of a tokenizer that is yet to be trained."""
    start, end = CHATML_TOKENS
    tokens = {"bos_token": start, "eos_token": end}
    return make_template(config, read_template(config) or CHATML, tokens, CHATML_TOKENS)


def contains_special_token(template: ChatTemplate, talk: Conversation) -> bool:
    """Tell whether a message or a tool spells a special token, which would end a turn."""
    return any(token in text for text in talk.strings for token in template.specials)


def render(template: ChatTemplate, talk: Conversation, *, prompt: bool = False) -> str:
    """Return the text of a conversation; with `prompt` that which asks for the next answer.

    Raises CannotRenderError for a conversation that the template refuses.
    """
    return _rendered(template, template.text, talk, prompt, marks=False)[0]


def render_marked(template: ChatTemplate, text: str, talk: Conversation) -> tuple[str, list[Span]]:
    """Return the text of a conversation by the template `text`, and the spans that it marks.

    Tokens and variables are those of `template`. Raises CannotRenderError as `render`.
    """
    return _rendered(template, text, talk, prompt=False, marks=True)


def _rendered(
    template: ChatTemplate, text: str, talk: Conversation, prompt: bool, marks: bool
) -> tuple[str, list[Span]]:
    """Render as transformers' `apply_chat_template` does."""
    from jinja2 import TemplateError
    from transformers.utils.chat_template_utils import render_jinja_template

    plain: list[Any] = [
        {**each.more, "role": each.role, "content": each.content} for each in talk.messages
    ]
    date = datetime.date.fromisoformat(template.date)
    variables: dict[str, Any] = {"date_string": date.strftime("%d %b %Y"), **template.variables}
    if "strftime_now" in text:
        text = _DATE_MACRO + text
        variables["kdscale_date"] = {f"%{each}": date.strftime(f"%{each}") for each in _DIRECTIVES}
    try:
        texts, spans = render_jinja_template(
            [plain],
            tools=[dict(tool) for tool in talk.tools] or None,
            chat_template=text,
            add_generation_prompt=prompt,
            return_assistant_tokens_mask=marks,
            **variables,
            **{name: each for name, each in template.tokens.items() if name not in variables},
        )
    except (TemplateError, TypeError) as error:
        raise CannotRenderError(str(error)) from error
    return texts[0], spans[0] if marks else []
