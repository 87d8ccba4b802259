"""Config of documents that are conversations."""

import datetime

from pydantic import Field, model_validator

from kdscale.config.base import Config, Place, PlaceForm

_DATE = datetime.date(2024, 7, 26)
# What rendering itself passes to a template.
_RESERVED = ("messages", "tools", "documents", "add_generation_prompt", "strftime_now")
_OPTIONS = ("chat_template", "continue_final_message", "return_assistant_tokens_mask")


class ChatConfig(Config):
    """Documents are conversations, rendered by a chat template; only answers are learned."""

    field: str = "messages"
    """Column with a list of messages: {role, content}, or {from, value} as ShareGPT has them."""

    prompt: str | None = None
    """Column with what is asked, a text or a list of messages, in place of `field`; needs
    `completion`."""

    completion: str | None = None
    """Column with the answer, a text or a list of messages. Answers in the prompt are not
    learned."""

    roles: dict[str, str] = {}
    """Other names of roles, and the role that each of them means. Known are system, developer,
    user, assistant, tool, and ShareGPT's human and gpt."""

    ignore: tuple[str, ...] = ()
    """Fields of messages beside role and content, and of records beside the messages, that are left
    out. Any other that holds something is written by the template, or refused."""

    template: Place | None = Field(default=None, min_length=1)
    """Jinja text of a chat template, or the path or URL of a file with one. Without it: the
    teacher's own, and ChatML for a tokenizer that is trained."""

    date: datetime.date = _DATE
    """Date that templates write where they would write today's. The default is the one that Llama
    3 falls back to."""

    variables: dict[str, bool | int | float | str] = {}
    """Variables of the template, such as `enable_thinking: false` (Qwen3), for all
    conversations."""

    def place_form(self, field: str) -> PlaceForm:
        """Return what `field`, of the type Place, holds."""
        return "path" if self.template_file else "text"

    @model_validator(mode="after")
    def _prompt_and_completion(self) -> "ChatConfig":
        if (self.prompt is None) != (self.completion is None):
            raise ValueError("`prompt` and `completion` belong together")
        return self

    @model_validator(mode="after")
    def _variables_are_free(self) -> "ChatConfig":
        taken = sorted({*self.variables} & {*_RESERVED, *_OPTIONS, "conversations"})
        if taken:
            raise ValueError(f"`variables` may not set {', '.join(taken)}: kdscale does")
        return self

    @property
    def unused(self) -> set[str]:
        """Fields that are left out of the data's name, as they change nothing."""
        found = {"ignore": self.ignore, "variables": self.variables, "date": self.date != _DATE}
        return {name for name, value in found.items() if not value}

    @property
    def columns(self) -> list[str]:
        """The columns that hold a conversation."""
        if self.prompt is None or self.completion is None:
            return [self.field]
        return [self.prompt, self.completion]

    @property
    def template_file(self) -> str | None:
        """The template's file; None if the config itself has the template."""
        is_text = self.template is None or "{" in self.template
        return None if is_text else self.template
