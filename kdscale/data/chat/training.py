"""Training templates: kdscale's own, for families whose published template marks no answers.

Each renders the text of its family's template and has `{% generation %}` around what an assistant
generates. Which one fits is found by what a template does: both render the same probes to the same
text. A conversation that they render differently is left to the published template.
"""

from dataclasses import replace
from functools import cache
from importlib.resources import files

from kdscale.data.chat.messages import Conversation, Message
from kdscale.data.chat.template import CannotRenderError, ChatTemplate, render

_FOLDER = "templates"
_SUFFIX = ".jinja"
_SYSTEM = Message("system", "Be short.", False)
_ASKED = Message("user", "Why is the sky blue?", False)
_SAID = Message("assistant", "Scattering.", True)
_THOUGHT = replace(_SAID, more={"reasoning_content": "Light, and air."})
# What tells the families, and a family's versions, apart.
_PROBES = tuple(
    Conversation(messages)
    for messages in (
        [_ASKED],
        [_SYSTEM, _ASKED],
        [_ASKED, _SAID],
        [_SYSTEM, _ASKED, _SAID, _ASKED],
        [_ASKED, _THOUGHT, _ASKED, _THOUGHT],
        [_SYSTEM, _ASKED, _SAID, _ASKED, _SAID],
    )
)


@cache
def training_templates() -> dict[str, str]:
    """Return the text of each training template, by its name."""
    folder = files("kdscale.data.chat") / _FOLDER
    found = sorted((each for each in folder.iterdir()), key=lambda each: each.name)
    return {
        each.name.removesuffix(_SUFFIX): each.read_text(encoding="utf-8")
        for each in found
        if each.name.endswith(_SUFFIX)
    }


def with_training(template: ChatTemplate) -> ChatTemplate:
    """Return the template with the name of the training template that does what it does, if any."""
    wanted = _behaviour(template)
    for name, text in training_templates().items():
        if _behaviour(replace(template, text=text)) == wanted:
            return replace(template, training=name)
    return template


def _behaviour(template: ChatTemplate) -> list[str | None]:
    """Return the text of each probe, with and without a prompt; None where it is refused."""
    found: list[str | None] = []
    for probe in _PROBES:
        for prompt in (False, True):
            try:
                found.append(render(template, probe, prompt=prompt))
            except CannotRenderError:
                found.append(None)
    return found
