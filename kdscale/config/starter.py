"""Starter configs of `kdscale init`: the quickstart, or every field with its meaning.

The full one is generated from the models, so that it cannot fall behind them. Its values are those
of the quickstart, which runs on two CPUs; other fields have their defaults.
"""

import textwrap
import typing
from collections.abc import Iterator
from typing import Any

import yaml
from pydantic.fields import FieldInfo

from kdscale.config.base import Config
from kdscale.config.load import parse_config
from kdscale.share import EXAMPLES

_WIDTH = 100


def starter_yaml(full: bool = False) -> str:
    """Return a run config as YAML: what most users set, or all fields with a comment on each."""
    text = EXAMPLES["quickstart"].read_text(encoding="utf-8")
    text = text[text.index("name: quickstart") :].replace("quickstart", "my-run")
    if not full:
        return f"# A run of kdscale. `kdscale init --full` lists every field.\n{text}"
    header = "A run of kdscale. A field that is left out has its default, unless it is required."
    return "\n".join([*_comment(header, 0), "", *_section(parse_config(text), 0)]) + "\n"


def _section(config: Config, indent: int) -> Iterator[str]:
    """Yield the lines of a model's fields."""
    for position, (name, field) in enumerate(type(config).model_fields.items()):
        if indent == 0 and position > 0:
            yield ""
        value = getattr(config, name)
        yield from _comment(_explain(field, value), indent)
        if isinstance(value, Config):
            yield f"{' ' * indent}{name}:"
            yield from _section(value, indent + 2)
        else:
            yield f"{' ' * indent}{name}: {_inline(value)}"


def _explain(field: FieldInfo, value: Any) -> str:
    """Return the field's own text, or its section's; then its choices and its default."""
    text = field.description or ""
    if not text and isinstance(value, Config):
        text = type(value).__doc__ or ""
    parts = [" ".join(text.split())]
    choices = typing.get_args(field.annotation)
    if typing.get_origin(field.annotation) is typing.Literal and len(choices) > 1:
        parts.append(f"One of {', '.join(map(str, choices))}.")
    if field.is_required():
        parts.append("Required.")
    elif not isinstance(value, Config) and field.default != value:
        parts.append(f"Default: {_inline(field.default)}.")
    return " ".join(part for part in parts if part)


def _comment(text: str, indent: int) -> list[str]:
    start = f"{' ' * indent}# "
    return textwrap.wrap(
        text, _WIDTH, initial_indent=start, subsequent_indent=start, break_on_hyphens=False
    )


def _inline(value: Any) -> str:
    """Return a value as YAML on one line."""
    if isinstance(value, dict):
        value = {
            key: item.model_dump(mode="json", exclude_unset=True)
            if isinstance(item, Config)
            else item
            for key, item in value.items()
        }
    if isinstance(value, tuple):
        value = list(value)
    text = yaml.safe_dump(value, default_flow_style=True, width=float("inf"), sort_keys=False)
    return text.removesuffix("\n").removesuffix("\n...")
