"""What every config model shares: frozen, unknown keys refused, documented once, under the
field."""

import os
from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict

Place = Annotated[str, AfterValidator(os.path.expanduser)]
"""A path, a URL or a name on a hub; ~ is the home folder of who reads the config."""


class Config(BaseModel):
    """Base of all config models. The string under a field is its help text and its YAML comment."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        use_attribute_docstrings=True,
        validate_default=True,
        protected_namespaces=(),
        allow_inf_nan=False,
    )
