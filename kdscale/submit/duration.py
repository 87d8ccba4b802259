"""Times as people write them: 30s, 5m, 2h, 1d."""

import re

from kdscale.errors import KdscaleError

_UNITS = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400}


def seconds(text: str) -> int:
    """Seconds of a time such as `90`, `30s`, `5m`, `2h` or `1d`. Raises KdscaleError."""
    match = re.fullmatch(r"([0-9]+)([smhd]?)", text.strip())
    if match is None:
        raise KdscaleError(
            f"{text!r} is no length of time.", "Write a whole number and a unit: 30s, 5m, 2h, 1d."
        )
    return int(match[1]) * _UNITS[match[2]]
