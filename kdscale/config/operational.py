"""Operational fields of a config: how a result is computed, not which result.

They can change between two attempts at the same output, so no fingerprint covers them: numbers of
workers, micro-batches, ZeRO stages, intervals.
"""

from typing import Annotated, Any, TypeVar

from pydantic import BaseModel

T = TypeVar("T")


class _Mark:
    """Marker of an operational field."""


class _Later:
    """Marker of a field that was added later."""


Operational = Annotated[T, _Mark()]
"""Type of an operational field, such as `Operational[int]`."""

Later = Annotated[T, _Later()]
"""Type of a field that was added later: no fingerprint covers it while it has its default, so that
names from before it existed stay valid."""


def recipe(model: BaseModel) -> dict[str, Any]:
    """Return the content of a config as JSON, without its operational fields at any depth.

    Fields of the type `Later` are left out too where they have their default.
    """
    tree = model.model_dump(mode="json")
    found = {}
    for name, field in type(model).model_fields.items():
        value = getattr(model, name)
        is_operational = any(isinstance(mark, _Mark) for mark in field.metadata)
        is_later = any(isinstance(mark, _Later) for mark in field.metadata)
        if not is_operational and not (is_later and value == field.get_default()):
            found[name] = recipe(value) if isinstance(value, BaseModel) else tree[name]
    return found
