"""Rows of a CSV table: detection of the delimiter and of damaged rows."""

import csv
import io
from collections.abc import Iterable, Iterator
from typing import Any, BinaryIO, NamedTuple

# Python's own limit is shorter than many a document.
_FIELD_CHARACTERS = 2**30
_HEADER_BYTES = 2**16
_DELIMITERS = (",", "\t", ";", "|")


class NotCsvError(ValueError):
    """Table that is damaged from some line on."""


class Row(NamedTuple):
    """A row: its values by column, and how it differs from the header, if it does."""

    values: dict[str, Any]
    problem: str = ""
    is_long: bool = False  # a delimiter stands in a text without quotes, most likely


class Table:
    """Table in a UTF-8 file; other bytes become lone surrogates."""

    def __init__(self, file: BinaryIO, head: bytes, needed: Iterable[str], delimiter: str) -> None:
        """Open the table of a file that begins with `head`.

        The delimiter is the expected one, or another where only with that the `needed` columns
        exist.
        """
        csv.field_size_limit(_FIELD_CHARACTERS)
        wanted = set(needed)
        tried = [delimiter, *(each for each in _DELIMITERS if each != delimiter)]
        start = head[:_HEADER_BYTES].decode("utf-8", "surrogateescape")
        fitting = [each for each in tried if wanted <= set(_header(start, each))]
        text = io.TextIOWrapper(file, encoding="utf-8", errors="surrogateescape", newline="")
        self._lines = _Lines(text)
        self._reader = csv.reader(self._lines, delimiter=(fitting or tried)[0])
        self.columns: list[str] = next(self._rows(), [])

    def __iter__(self) -> Iterator[Row]:
        """Yield the rows after the header, without empty ones. Raises NotCsvError if damaged."""
        width = len(self.columns)
        for cells in self._rows():
            values = dict(zip(self.columns, cells, strict=False))
            is_long = any(cells[width:])
            what = f"line {self._reader.line_num}: {len(cells)} fields, and the header has {width}"
            yield Row(values, what if is_long or len(cells) < width else "", is_long)

    def _rows(self) -> Iterator[list[str]]:
        """Yield all rows but empty ones."""
        while True:
            first = self._reader.line_num + 1
            try:
                cells = next(self._reader, None)
            except csv.Error as error:
                raise NotCsvError(f"line {self._reader.line_num}: {error}") from error
            if cells is None:
                return
            if self._lines.is_at_end:
                raise NotCsvError(f"line {first}: a quote that opens there is never closed")
            if cells:
                yield cells


class _Lines:
    """Lines of a file; the csv module asks for the next only when a row is not complete."""

    def __init__(self, lines: Iterable[str]) -> None:
        self._lines = iter(lines)
        self.is_at_end = False

    def __iter__(self) -> "_Lines":
        return self

    def __next__(self) -> str:
        try:
            return next(self._lines)
        except StopIteration:
            self.is_at_end = True
            raise


def _header(start: str, delimiter: str) -> list[str]:
    rows = csv.reader(io.StringIO(start, newline=""), delimiter=delimiter)
    try:
        return next((row for row in rows if row), [])
    except csv.Error:
        return []
