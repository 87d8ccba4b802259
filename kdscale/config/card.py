"""Config of the model cards: what only people know."""

from pydantic import Field

from kdscale.config.base import Config

_LICENCE = r"^[A-Za-z0-9][A-Za-z0-9.+-]{0,63}$"


class CardConfig(Config):
    """Facts for the model cards, which the report stage writes beside the models."""

    teacher_licence: str = Field(default="unknown", pattern=_LICENCE)
    """Licence of the teacher, as the hub writes it (`apache-2.0`, `llama3.1`)."""

    data_licence: str = Field(default="unknown", pattern=_LICENCE)
    """Licence of the training text, the strictest of several (`cc-by-4.0`)."""
