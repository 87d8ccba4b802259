"""Fields of a config that its fingerprints do not cover, always or while they are not used.

Operational ones say how a result is computed, not which result, and can change between two attempts
at the same output: numbers of workers, micro-batches, ZeRO stages, intervals. Others came after
runs had been named, and are left out while they have their default.
"""

from typing import Annotated, Any, TypeVar

from pydantic import BaseModel
from pydantic.fields import FieldInfo

T = TypeVar("T")


class _Mark:
    """Marker of an operational field."""


Operational = Annotated[T, _Mark()]
"""Type of an operational field, such as `Operational[int]`."""


class _LaterMark:
    """Marker of a field that came after runs had been named."""


Later = Annotated[T, _LaterMark()]
"""Type of a field that is left out of fingerprints while it has its default, so that the names of
runs from before it existed stay valid: `Later[Place | None]`."""


def recipe(model: BaseModel) -> dict[str, Any]:
    """Return the content of a config as JSON that fingerprints cover.

    Without its operational fields, and without later ones that have their default, at any depth.
    """
    tree = model.model_dump(mode="json")
    return {
        name: recipe(value) if isinstance(value := getattr(model, name), BaseModel) else tree[name]
        for name, field in type(model).model_fields.items()
        if not _is_left_out(field, getattr(model, name))
    }


def _is_left_out(field: FieldInfo, value: Any) -> bool:
    if any(isinstance(mark, _Mark) for mark in field.metadata):
        return True
    is_later = any(isinstance(mark, _LaterMark) for mark in field.metadata)
    return is_later and bool(value == field.default)
