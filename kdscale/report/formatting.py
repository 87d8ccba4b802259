"""Numbers as people read them; the same text in HTML, Markdown and model card."""

import math
from collections.abc import Sequence

NONE = "–"


def number(value: float | None, digits: int = 3) -> str:
    """Format `value` with `digits` decimals; a dash for None."""
    if value is None:
        return NONE
    if not math.isfinite(value):
        return "NaN" if math.isnan(value) else "∞" if value > 0 else "-∞"
    return f"{value:,.{digits}f}"


def signed(value: float | None, digits: int = 3) -> str:
    """Format `value` with its sign, `+0.120`, and `digits` decimals; a dash for None."""
    if value is None or not math.isfinite(value):
        return number(value)
    shown = round(value, digits)
    return f"{'-' if shown < 0 else '+'}{number(abs(shown), digits)}"


def percent(share: float | None, digits: int = 1) -> str:
    """Format a share of 1 in percent."""
    return NONE if share is None else f"{number(100 * share, digits)}%"


def significant(value: float | None) -> str:
    """Format `value` with four significant digits; a dash for None."""
    return NONE if value is None else f"{value:,.4g}"


def between(share: float | None, interval: Sequence[float] | None) -> str:
    """Format a share of 1 in percent, with its interval if it has one: `29.9% (27.1–32.4)`."""
    if share is None or interval is None:
        return percent(share)
    low, high = (number(100 * bound, 1) for bound in interval)
    return f"{percent(share)} ({low}–{high})"


def times(factor: float, low: float, high: float) -> str:
    """Format a factor with its interval: `5.9 (5.2 to 6.4)`."""
    return f"{number(factor, 1)} ({number(low, 1)} to {number(high, 1)})"


def within(value: float | None, interval: Sequence[float] | None, digits: int = 4) -> str:
    """Format `value` with its interval if it has one: `3.3821 (3.3612–3.4031)`."""
    if value is None or interval is None:
        return number(value, digits)
    low, high = (number(bound, digits) for bound in interval)
    return f"{number(value, digits)} ({low}–{high})"


def dollars(value: float | None) -> str:
    """Format US dollars, to the cent below a hundred; a dash for None."""
    return NONE if value is None else f"${number(value, 2 if value < 100 else 0)}"


def energy(kwh: float | None) -> str:
    """Format kilowatt hours, as Wh below one; a dash for None."""
    if kwh is None:
        return NONE
    return f"{kwh:,.3g} kWh" if kwh >= 1 else f"{1000 * kwh:,.3g} Wh"


def count(value: float) -> str:
    """Format three significant digits and k, M, B or T; integers below 1,000 as they are."""
    return _scaled(value, 1000, ("", " k", " M", " B", " T"))


def size(n_bytes: float) -> str:
    """Format bytes in binary units."""
    return _scaled(n_bytes, 1024, (" B", " KiB", " MiB", " GiB", " TiB", " PiB"))


def duration(seconds: float) -> str:
    """Format seconds as seconds, minutes or hours."""
    if not math.isfinite(seconds):
        return number(seconds)
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min"


def latency(seconds: float | None) -> str:
    """Format seconds as milliseconds, with three digits or more; a dash for None."""
    if seconds is None:
        return NONE
    thousandths = 1000 * seconds
    return f"{number(thousandths, 2 if thousandths < 10 else 1 if thousandths < 100 else 0)} ms"


def _scaled(value: float, base: int, units: tuple[str, ...]) -> str:
    if not math.isfinite(value):
        return number(value)
    power = 0
    # 999.5 would be printed as 1000 of the smaller unit.
    while abs(value) >= 999.5 and power < len(units) - 1:
        value, power = value / base, power + 1
    if power == 0 and value == int(value):
        return f"{int(value)}{units[0]}"
    digits = 2 if abs(value) < 9.995 else 1 if abs(value) < 99.95 else 0
    return f"{value:.{digits}f}{units[power]}"
