"""The starter config of `kdscale init`: every field, what it means, and a value that works.

It is generated from the models, so that it cannot fall behind them. The values are those of the
quickstart, which runs on two CPUs; what the quickstart leaves out has its default.
"""

import textwrap
import typing
from collections.abc import Iterator
from typing import Any

import yaml
from pydantic.fields import FieldInfo

from kdscale.config.base import Config
from kdscale.config.run import RunConfig

_WIDTH = 100

# The same values as jobs/configs/quickstart.yaml, which an installed package does not have.
_QUICKSTART: dict[str, Any] = {
    "name": "my-run",
    "output": "runs/my-run",
    "data": {"evaluate": {"python-docs": {"kind": "python-docs"}}},
    "teacher": {
        "model": {
            "architecture": "llama",
            "options": {
                "hidden_size": 256,
                "intermediate_size": 704,
                "num_hidden_layers": 4,
                "num_attention_heads": 4,
                "num_key_value_heads": 4,
                "tie_word_embeddings": True,
            },
        },
        "training": {
            "steps": 640,
            "global_batch_size": 8,
            "micro_batch_size": 4,
            "zero": {"stage": 2},
            "checkpoint_every": 200,
        },
    },
    "cache": {
        "sequences": 1600,
        "sequences_per_shard": 200,
        "sequences_per_chunk": 50,
        "capture": {"micro_batch_size": 25},
    },
    "distill": {
        "student": {
            "model": {
                "architecture": "llama",
                "options": {
                    "hidden_size": 96,
                    "intermediate_size": 256,
                    "num_hidden_layers": 2,
                    "num_attention_heads": 4,
                    "num_key_value_heads": 4,
                    "tie_word_embeddings": True,
                },
            },
        },
        "training": {
            "steps": 200,
            "global_batch_size": 8,
            "micro_batch_size": 4,
            "optimiser": {"learning_rate": 3.0e-3},
        },
        "curriculum": {"warmup_share": 0.25},
    },
}


def starter_yaml() -> str:
    """YAML of a complete run config, with a comment above every field that has something to say."""
    config = RunConfig.model_validate(_QUICKSTART)
    header = (
        "A run of kdscale. A field may be left out, unless it is required, and takes its default."
    )
    return "\n".join([*_comment(header, 0), "", *_section(config, 0)]) + "\n"


def _section(config: Config, indent: int) -> Iterator[str]:
    """The lines of a model's fields."""
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
    """What the field means: its own text, or its section's; then its choices and its default."""
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
    """A value as YAML on one line."""
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
