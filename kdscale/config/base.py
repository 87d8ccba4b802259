"""What every config model shares: frozen, unknown keys refused, documented once, under the
field."""

from pydantic import BaseModel, ConfigDict


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
