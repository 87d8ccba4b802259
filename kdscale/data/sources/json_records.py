"""Records of a JSON file: lines, an array, concatenated objects, or one object that wraps them.

The form follows from the beginning of the file. In lines a broken record is counted as undecodable;
in the other forms it is an error, since the next record's beginning is unknown.
"""

import codecs
import json
import re
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from kdscale.data.sources.opening import Opened

MOST_CHARACTERS = 2**30
"""Longest value in a file that is not in lines."""

_READ_BYTES = 2**20
_BLANKS = re.compile(r"[ \t\r\n]*")
# Objects one after the other may have commas between them, files that were joined their marks.
_BETWEEN_VALUES = re.compile(r"[ \t\r\n,\ufeff]*")
# So near to the end of the window, a number or a word may be cut.
_CUT = 16
_DECODER = json.JSONDecoder()
_NOT_JSON = (ValueError, RecursionError)


class Record(NamedTuple):
    """A record and its number: of its line, or in the order of the records."""

    number: int
    value: Any
    problem: str = ""  # why it cannot be decoded


class NotJsonError(ValueError):
    """File that is not in lines and not JSON from some line on."""


def json_records(opened: Opened, unwrap: Callable[[Any], list[Any] | None]) -> Iterator[Record]:
    """Yield the records of a file in UTF-8, a line or value in memory at a time.

    `unwrap` gives the records that an object wraps, None for an object that is a record. It is
    called for the only value of a file. Raises NotJsonError where a file that is not in lines is
    damaged.
    """
    if _is_in_lines(opened):
        yield from _lines(opened, unwrap)
    else:
        yield from _values(opened, unwrap)


def _is_in_lines(opened: Opened) -> bool:
    """Tell whether the file has a value a line.

    Not where it begins with an array, or with an object that ends in another line or shares its
    line.
    """
    start = opened.head.lstrip()
    if not start.startswith(b"{"):
        return not start.startswith(b"[")
    first, ends, rest = start.partition(b"\n")
    if (ends or opened.is_whole) and _problem(first) is None:
        return True
    text = start.decode("utf-8", "surrogateescape" if opened.is_whole else "ignore")
    try:
        _DECODER.raw_decode(text)
    except json.JSONDecodeError as error:
        # A line that is broken in itself, or cut, has lines behind it that are not.
        second = rest.lstrip().partition(b"\n")[0]
        return not ends or error.pos <= text.find("\n") or _problem(second) is None
    except _NOT_JSON:
        return True
    return False


def _problem(line: bytes) -> str | None:
    """Return why a line is no JSON."""
    try:
        json.loads(line)
    except _NOT_JSON as error:
        return str(error)
    return None


def _lines(opened: Opened, unwrap: Callable[[Any], list[Any] | None]) -> Iterator[Record]:
    first: Record | None = None
    count = 0
    for number, line in enumerate(opened.file):
        if not line.strip():
            continue
        try:
            record = Record(number, json.loads(line))
        except _NOT_JSON as error:
            record = Record(number, None, f"line {number + 1}: {error}")
        count += 1
        if count == 1:
            first = record  # It may be the only one, and a wrapper.
            continue
        if first is not None:
            yield first
            first = None
        yield record
    if first is not None:
        yield from _unwrapped(first, unwrap)


def _unwrapped(record: Record, unwrap: Callable[[Any], list[Any] | None]) -> Iterator[Record]:
    inside = None if record.problem else unwrap(record.value)
    if inside is None:
        yield record
    else:
        yield from (Record(*pair) for pair in enumerate(inside))


def _values(opened: Opened, unwrap: Callable[[Any], list[Any] | None]) -> Iterator[Record]:
    """Yield the values of a file, one after the other; of arrays their elements."""
    text = _Text(opened)
    first: Record | None = None
    number = 0
    while sign := text.skip(_BETWEEN_VALUES):
        for value in _elements(text) if sign == "[" else iter([text.value()]):
            if number == 0 and sign != "[":
                first = Record(0, value)
            else:
                if first is not None:
                    yield first
                    first = None
                yield Record(number, value)
            number += 1
    if first is not None:
        yield from _unwrapped(first, unwrap)


def _elements(text: "_Text") -> Iterator[Any]:
    """Yield the elements of the array that begins here."""
    text.step()
    if text.skip(_BLANKS) == "]":
        text.step()
        return
    while True:
        yield text.value()
        sign = text.skip(_BLANKS)
        if sign not in (",", "]"):
            raise text.problem("Expecting ',' or ']' after an element of the array")
        text.step()
        if sign == "]":
            return
        text.skip(_BLANKS)


class _Text:
    """Window over a text that is larger than memory."""

    def __init__(self, opened: Opened) -> None:
        self._file = opened.file
        # Other bytes than UTF-8 stay in the strings, which count as undecodable later.
        self._decoder = codecs.getincrementaldecoder("utf-8")("surrogateescape")
        self._text, self._at, self._line = "", 0, 1
        self._is_last = False

    def skip(self, blanks: re.Pattern[str]) -> str:
        """Skip blanks; return the next character, "" at the end."""
        while True:
            found = blanks.match(self._text, self._at)
            assert found is not None
            self._at = found.end()
            if self._at < len(self._text) or self._is_last:
                return self._text[self._at : self._at + 1]
            self._read(_READ_BYTES)

    def step(self) -> None:
        """Step past the next character."""
        self._at += 1

    def value(self) -> Any:
        """Read the value that begins here."""
        while True:
            try:
                value, end = _DECODER.raw_decode(self._text, self._at)
            except json.JSONDecodeError as error:
                is_cut = error.msg.startswith("Unterminated") or (
                    error.pos >= len(self._text) - _CUT
                )
                if self._is_last or not is_cut:
                    raise self.problem(error.msg, error.pos) from error
            except _NOT_JSON as error:
                raise self.problem(str(error)) from error
            else:
                if end < len(self._text) or self._is_last:
                    self._at = end
                    return value
            held = len(self._text) - self._at
            if held > MOST_CHARACTERS:
                raise self.problem(f"a single value of more than {MOST_CHARACTERS:,} characters")
            # As much again, so that a long value is not looked at too often.
            self._read(max(_READ_BYTES, held))

    def problem(self, what: str, at: int | None = None) -> NotJsonError:
        """Return the error for a problem, with its line."""
        line = self._line + self._text.count("\n", 0, self._at if at is None else at)
        return NotJsonError(f"line {line}: {what}")

    def _read(self, size: int) -> None:
        data = self._file.read(size)
        self._is_last = not data
        self._line += self._text.count("\n", 0, self._at)
        self._text = self._text[self._at :] + self._decoder.decode(data, self._is_last)
        self._at = 0
