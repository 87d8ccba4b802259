"""Lengths of time as people write them: 30s, 5m, 2h, 1d."""

import re

from kdscale.errors import KdscaleError

_UNITS = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400}


def parse_duration(text: str) -> int:
    """Return the seconds of `90`, `30s`, `5m`, `2h` or `1d`. Raises KdscaleError for other text."""
    match = re.fullmatch(r"([0-9]+)([smhd]?)", text.strip())
    if match is None:
        raise KdscaleError(
            f"{text!r} is not a length of time.",
            "Write a whole number of seconds, or one with a unit: 90, 30s, 5m, 2h, 1d.",
        )
    return int(match[1]) * _UNITS[match[2]]
