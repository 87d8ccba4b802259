"""Masking of personal data: each find is replaced by its kind.

Kinds with a checksum or a syntax are verified by it, so that few other numbers are masked: cards by
Luhn's, IBANs by ISO 7064, addresses by the standard library, phone numbers by the rules of their
country (libphonenumber). Names of persons are not found.
"""

import ipaddress
import re
from collections.abc import Callable, Iterable, Iterator

from kdscale.config.cleaning import PiiKind

Span = tuple[int, int]

_EMAIL = re.compile(r"[A-Za-z0-9][A-Za-z0-9._%+-]*@(?:[A-Za-z0-9-]+\.)+[A-Za-z]{2,}")
_CREDENTIALS = re.compile(r"(?<=://)[^/\s:@]+:[^/\s@]+(?=@)")
_ADDRESS = re.compile(
    r"(?<![\w.:])(?:\d{1,3}(?:\.\d{1,3}){3}|[0-9A-Fa-f:]*:[0-9A-Fa-f:]+)(?![\w.:]*\w)"
)
_CARD = re.compile(r"(?<![\d-])\d(?:[ -]?\d){12,18}(?![\d-])")
_IBAN = re.compile(r"\b[A-Z]{2}\d{2}(?: ?[A-Z0-9]){11,30}\b")


def mask_pii(text: str, of: Iterable[PiiKind], region: str) -> str:
    """Replace every find of the kinds in `of` by the kind's name, such as <EMAIL>.

    Where finds overlap, the first of the kinds has it.
    """
    for kind in of:
        spans = _phones(text, region) if kind == "phone" else _FINDERS[kind](text)
        parts, end = [], 0
        for start, stop in spans:
            parts += [text[end:start], f"<{kind.upper()}>"]
            end = stop
        text = "".join(parts) + text[end:]
    return text


def _emails(text: str) -> Iterator[Span]:
    yield from (found.span() for found in _EMAIL.finditer(text))


def _credentials(text: str) -> Iterator[Span]:
    yield from (found.span() for found in _CREDENTIALS.finditer(text))


def _addresses(text: str) -> Iterator[Span]:
    for found in _ADDRESS.finditer(text):
        try:
            ipaddress.ip_address(found[0])
        except ValueError:
            continue
        yield found.span()


def _cards(text: str) -> Iterator[Span]:
    for found in _CARD.finditer(text):
        digits = [int(digit) for digit in found[0] if digit.isdigit()]
        doubled = [2 * d - 9 * (d > 4) for d in digits[-2::-2]]
        if (sum(digits[-1::-2]) + sum(doubled)) % 10 == 0 and any(digits):
            yield found.span()


def _ibans(text: str) -> Iterator[Span]:
    for found in _IBAN.finditer(text):
        whole = found[0].replace(" ", "")
        number = "".join(str(int(letter, 36)) for letter in whole[4:] + whole[:4])
        if int(number) % 97 == 1:
            yield found.span()


def _phones(text: str, region: str) -> Iterator[Span]:
    from phonenumbers import Leniency, PhoneNumberMatcher

    # Dates and versions are numbers of the right length too: only the usual grouping counts.
    matcher = PhoneNumberMatcher(text, region, leniency=Leniency.STRICT_GROUPING)
    yield from ((match.start, match.end) for match in matcher)


_FINDERS: dict[PiiKind, Callable[[str], Iterator[Span]]] = {
    "email": _emails,
    "credentials": _credentials,
    "ip_address": _addresses,
    "credit_card": _cards,
    "iban": _ibans,
}
