"""Charts and tables of a run as plain data.

The report makes them, tracking shows them in W&B; neither imports the other.
"""

import hashlib
import re
from dataclasses import dataclass
from typing import Literal

Cell = str | float
_KEY_BYTES = 80
"""Longest section and name together: W&B puts a table under `run-<id>-<key>_table-<checksum>`,
which may have 128 characters, and in a file of that key, whose name may have 255 bytes."""

_ARTIFACT_BYTES = 128


def fit(name: str, size: int) -> str:
    """Shorten and clean a name for a key: letters, digits, `_`, `.`, `-`, at most `size` bytes.

    What is cut ends in a checksum of the whole, so that names stay distinct.
    """
    safe = re.sub(r"[^\w.-]+", "-", name).strip("-.") or "unnamed"
    if len(safe.encode()) <= size:
        return safe
    checksum = hashlib.sha256(name.encode()).hexdigest()[:8]
    kept = safe.encode()[: size - len(checksum) - 1].decode(errors="ignore")
    return f"{kept.rstrip('-.')}-{checksum}"


def artifact_name(name: str) -> str:
    """Return `name` as W&B allows it for an artifact: ASCII, of 128 characters at most."""
    return fit(name.encode("ascii", "replace").decode(), _ARTIFACT_BYTES)


@dataclass(frozen=True)
class Panel:
    """Rows under columns, and the way to draw them.

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
        """The key in W&B: the part before the slash is a section of its page."""
        section = fit(self.section, _KEY_BYTES // 4)
        return f"{section}/{fit(self.name, _KEY_BYTES - len(section.encode()) - 1)}"
