"""A chart or a table of a run as plain data: made from its results, shown by whoever can draw it.

The report room makes them and tracking shows them in W&B; neither knows the other.
"""

from dataclasses import dataclass
from typing import Literal

Cell = str | float


@dataclass(frozen=True)
class Panel:
    """Rows under columns, and how they are to be drawn.

    Columns of `lines` are x, y and the line's name, of `bars` a name and a value, of a `confusion`
    the label, the prediction and how often; a `table` has any.
    """

    section: str
    name: str
    kind: Literal["lines", "bars", "confusion", "table"]
    columns: tuple[str, ...]
    rows: list[list[Cell]]

    @property
    def key(self) -> str:
        """What W&B files it under: the part before the slash is a section of its page."""
        return f"{self.section}/{self.name}"
