"""Operational fields of a config: how a result is computed, not which result.

They can change between two attempts at the same output, so no fingerprint covers them: numbers of
workers, micro-batches, ZeRO stages, intervals.
"""

from typing import Annotated, Any, TypeVar

from pydantic import BaseModel

T = TypeVar("T")


class _Mark:
    """Marker of an operational field."""


Operational = Annotated[T, _Mark()]
"""Type of an operational field, such as `Operational[int]`."""


def recipe(model: BaseModel) -> dict[str, Any]:
    """Return the content of a config as JSON, without its operational fields at any depth."""
    tree = model.model_dump(mode="json")
    return {
        name: recipe(value) if isinstance(value := getattr(model, name), BaseModel) else tree[name]
        for name, field in type(model).model_fields.items()
        if not any(isinstance(mark, _Mark) for mark in field.metadata)
    }
