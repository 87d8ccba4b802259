"""Files of a folder, glob or path: those of a source, and those that are not read."""

import os
import re
import stat
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from kdscale.data.sources.fields import readable
from kdscale.store import Store, open_store

_COMPRESSED = ("", ".gz", ".bz2", ".xz", ".zst", ".lz4")
_NAMES = {
    "text": ("",),
    "jsonl": (".jsonl", ".ndjson", ".json"),
    "csv": (".csv", ".tsv"),
    "parquet": (".parquet",),
}
_EXAMPLES = 3
_HIDDEN, _OTHER, _EMPTY = "hidden", "of other kinds", "empty"


class Found(NamedTuple):
    """A listed file, and why it cannot be read or is empty."""

    key: str
    problem: str = ""


@dataclass(frozen=True)
class Unread:
    """Files at a source's place that give no document: counts by reason, first examples."""

    place: str
    counts: dict[str, int]
    """Files by the reason."""

    examples: dict[str, list[str]]
    """The first files of each reason."""

    def as_dict(self) -> dict[str, Any]:
        """Plain values for the manifest."""
        return {"place": self.place, "counts": self.counts, "examples": self.examples}


def describe_unread(counts: dict[str, int], examples: dict[str, list[str]]) -> str:
    """Return a text such as "3 of other kinds (a.yaml, ...), 1 empty (b.jsonl)"."""
    parts = []
    for reason, count in counts.items():
        shown = [*examples[reason], *(["..."] if count > len(examples[reason]) else [])]
        parts.append(f"{count:,} {reason} ({', '.join(shown)})")
    return ", ".join(parts)


@dataclass(frozen=True)
class Folder:
    """Files of a source, as sorted keys in the store `root`, and the files not read."""

    root: str
    keys: list[str]
    unread: Unread


def find_files(path: str, kind: str) -> Folder:
    """Find the files at a path, folder or glob for a source of the `kind`.

    Of a folder or glob these are the files that are not hidden and have a name of the kind. A file
    named by its own path is taken whatever its name.
    """
    root, listed, is_named = _listed(path)
    keys, unread = list[str](), list[Found]()
    for key, problem in sorted(listed):
        why = "" if is_named else _reason(key, kind)
        if problem not in ("", _EMPTY) and why != _HIDDEN:
            why = problem
        if not why:
            keys.append(key)
        if why or problem:
            unread.append(Found(key, why or problem))
    return Folder(root, keys, _summary(str(open_store(path)), unread))


def kind_of(key: str) -> str:
    """Return the kind of source that a file is of by its name: `text` where it is no other."""
    kinds = (kind for kind in _NAMES if kind != "text" and not _reason(key, kind))
    return next(kinds, "text")


def suffixes(kind: str) -> str:
    """Return the file names of a kind, for a message."""
    return f"{', '.join(_NAMES[kind])}, compressed ({', '.join(_COMPRESSED[1:])}) or not"


def _reason(key: str, kind: str) -> str:
    """Return why a file is not of the source; empty where it is."""
    if any(part.startswith(".") for part in key.split("/")):
        return _HIDDEN
    packed = _COMPRESSED if kind != "parquet" else ("",)
    endings = tuple(name + more for name in _NAMES[kind] for more in packed)
    return "" if key.lower().endswith(endings) else _OTHER


def _summary(place: str, unread: Iterable[Found]) -> Unread:
    counts, examples = dict[str, int](), dict[str, list[str]]()
    for key, why in unread:
        counts[why] = counts.get(why, 0) + 1
        named = examples.setdefault(why, [])
        if len(named) < _EXAMPLES:
            named.append(readable(key))
    return Unread(place, counts, examples)


def _listed(path: str) -> tuple[str, list[Found], bool]:
    """Return the folder that keys are relative to, its files, and whether the path is a file."""
    magic = re.search(r"[*?]", path)
    if magic:
        root, slash, _ = path[: magic.start()].rpartition("/")
        pattern = glob_pattern(path[len(root) + len(slash) :])
        root = root or slash or "."
        found = [each for each in _files(open_store(root)) if pattern.fullmatch(each.key)]
        return root, found, False
    parent, slash, name = path.rpartition("/")
    parent = parent or slash or "."
    if name not in ("", ".", "..") and open_store(parent).exists(name):
        empty = open_store(parent).size(name) == 0
        return parent, [Found(name, _EMPTY if empty else "")], True
    return path, list(_files(open_store(path))), False


def _files(store: Store) -> Iterator[Found]:
    folder = store.local_path()
    if folder is None:
        yield from (Found(each.key, "" if each.size else _EMPTY) for each in store.entries())
        return
    shut: list[Found] = []

    def note(error: OSError) -> None:
        if isinstance(error, PermissionError):
            key = Path(str(error.filename)).relative_to(folder).as_posix()
            shut.append(Found(key, "without permission to read"))

    for parent, folders, names in os.walk(folder, onerror=note):
        inside = Path(parent).relative_to(folder)
        for name in folders:
            if os.path.islink(os.path.join(parent, name)):
                yield Found((inside / name).as_posix(), "behind a link to a folder")
        for name in names:
            yield Found((inside / name).as_posix(), _problem(os.path.join(parent, name)))
    yield from shut


def _problem(path: str) -> str:
    """Return why a file of this machine cannot be read; empty where it can."""
    try:
        found = os.stat(path)
    except OSError:
        return "behind a broken link"
    if not stat.S_ISREG(found.st_mode):
        return "not a regular file"
    return "" if found.st_size else _EMPTY


def glob_pattern(glob: str) -> re.Pattern[str]:
    """Compile a glob over keys: `*` and `?` within a folder, `**/` any number of folders."""
    rules = {"**/": "(?:.*/)?", "**": ".*", "*": "[^/]*", "?": "[^/]"}
    parts = re.split(r"(\*\*/|\*\*|\*|\?)", glob)
    return re.compile("".join(rules.get(part, re.escape(part)) for part in parts), re.DOTALL)
