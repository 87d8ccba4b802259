"""Text files that a user gives by their path: UTF-8, with or without a byte order mark."""

import codecs
from pathlib import Path

from kdscale.errors import KdscaleError

# Longest first: UTF-32's little-endian mark begins with UTF-16's.
_MARKS = (
    (codecs.BOM_UTF32_LE, "UTF-32"),
    (codecs.BOM_UTF32_BE, "UTF-32"),
    (codecs.BOM_UTF16_LE, "UTF-16"),
    (codecs.BOM_UTF16_BE, "UTF-16"),
)


def read_text(path: str | Path, what: str, fix: str) -> str:
    """Return the text of the file at `path`, with line feeds as line ends.

    Raises KdscaleError where it cannot be read: `what` names it ("config"), and `fix` is a sentence
    for a wrong path. A file of another encoding is refused as by `decode_text`.
    """
    try:
        raw = Path(path).read_bytes()
    except OSError as error:
        raise KdscaleError(
            f"The {what} {str(path)!r} cannot be read: {error.strerror}.", fix
        ) from error
    return decode_text(raw, f"The {what} {str(path)!r}").replace("\r\n", "\n").replace("\r", "\n")


def decode_text(raw: bytes, subject: str) -> str:
    """Return the text of `raw`, without its byte order mark.

    Raises KdscaleError where that is not UTF-8: "`subject` is not UTF-8", with line and byte.
    Nothing of the text itself is in the message, as it may hold secrets.
    """
    for mark, encoding in _MARKS:
        if raw.startswith(mark):
            raise _refusal(f"{subject} is {encoding}, not UTF-8.", encoding)
    try:
        text = raw.removeprefix(codecs.BOM_UTF8).decode("utf-8", "strict")
    except UnicodeDecodeError as error:
        at = error.start + len(raw) - len(raw.removeprefix(codecs.BOM_UTF8))
        raise _refusal(
            f"{subject} is not UTF-8: byte {at + 1} of the file, in line "
            f"{_line(raw, at)}, is 0x{raw[at]:02x}, which is not valid there.",
            "LATIN1",
        ) from error
    if (at := raw.find(b"\0")) >= 0:
        raise _refusal(
            f"{subject} is not text: byte {at + 1} of the file, in line {_line(raw, at)}, is 0, as "
            "in UTF-16.",
            "UTF-16",
        )
    return text


def _line(raw: bytes, at: int) -> int:
    return raw.count(b"\n", 0, at) + 1


def _refusal(problem: str, encoding: str) -> KdscaleError:
    return KdscaleError(
        problem,
        "Save it as UTF-8, as an editor's `Save as` does, or: "
        f"iconv -f {encoding} -t UTF-8 FILE > NEW.",
    )
