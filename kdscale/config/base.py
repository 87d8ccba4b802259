"""Base of all config models: frozen, unknown keys refused, each field documented under it."""

import math
import os
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

LEAST_TEMPERATURE, MOST_TEMPERATURE = 0.01, 100.0
Temperature = Annotated[float, Field(ge=LEAST_TEMPERATURE, le=MOST_TEMPERATURE)]
"""Divisor of logits: beyond these bounds a softmax is one-hot, or uniform."""

PLACE = object()
"""Marks the type of a field that holds a place."""

Place = Annotated[str, AfterValidator(os.path.expanduser), PLACE]
"""A path or URL, with ~ expanded; `Config.place_form` names the fields that may hold other text.
`kdscale.config.places` finds every field of this type."""

PlaceForm = Literal["path", "hub", "node", "text"]
"""`path`: a path or URL. `hub`: a path or URL, or a name on the Hugging Face hub. `node`: a folder
that each machine has for itself. `text`: neither."""


class Config(BaseModel):
    """Base of all config models. The string under a field is its help text and its YAML comment."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        use_attribute_docstrings=True,
        validate_default=True,
        protected_namespaces=(),
        # Infinity and NaN are no meaningful value of any setting.
        allow_inf_nan=False,
    )

    def place_form(self, field: str) -> PlaceForm:
        """Return what `field`, of the type Place, holds."""
        return "path"


def not_finite(tree: Any, name: str = "") -> Iterator[tuple[str, float]]:
    """Yield the name and value of each infinity and NaN in a tree without typed fields."""
    if isinstance(tree, float) and not math.isfinite(tree):
        yield name, tree
    elif isinstance(tree, Mapping):
        for key, value in tree.items():
            yield from not_finite(value, f"{name}.{key}" if name else str(key))
    elif isinstance(tree, list | tuple):
        for index, value in enumerate(tree):
            yield from not_finite(value, f"{name}.{index}" if name else str(index))
