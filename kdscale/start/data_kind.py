"""Kind and fields of the data at a place, found by the names of files and their first records."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import Any

from kdscale.config.task import Task
from kdscale.data.sources.folders import find_files, kind_of
from kdscale.data.sources.opening import read_whole
from kdscale.data.sources.readers import is_saved_dataset
from kdscale.data.sources.samples import sample_records
from kdscale.errors import KdscaleError
from kdscale.store import explained

_RECORDS, _FILES = 256, 32  # looked at
# Names of fields, the likeliest first.
_TEXTS = ("text", "content", "body", "document", "article", "passage", "sentence", "code")
_LABELS = ("label", "labels", "category", "class", "topic", "sentiment", "intent", "target")
_TALKS = ("messages", "conversations", "conversation", "dialogue")
_ASKED = (("prompt", "completion"), ("prompt", "response"), ("question", "answer"))


@dataclass(frozen=True)
class FoundData:
    """Data as a config names them; `texts` are some documents, as strings."""

    source: dict[str, Any]  # of `data.train`
    texts: list[str]
    chat: dict[str, Any] | None = None
    label: str | None = None
    is_single: bool = False  # one document in all
    notes: list[str] = field(default_factory=list)


@explained()
def find_data(path: str, task: Task) -> FoundData:
    """Return the kind and the fields of the data at `path`: a file, folder, glob or URL.

    Raises KdscaleError where there is nothing, or nothing that holds text, or no label for a
    classifier.
    """
    if "://" not in path and Path(path).is_dir() and is_saved_dataset(path):
        raise KdscaleError(
            f"{path!r} is a data set of Hugging Face's library, whose fields are not looked at.",
            "Write data.train: {kind: huggingface, path: ..., text_field: ...} into a config of "
            "`kdscale init`, or export the data set: dataset.to_parquet(...).",
        )
    folder = find_files(path.rstrip("/") or path, "text")
    if not folder.keys:
        raise KdscaleError(
            f"There is no file to read in {path!r}.",
            "Give a file, a folder, a glob such as 'folder/**/*.jsonl', or a URL of these.",
        )
    kinds = Counter(kind_of(key) for key in folder.keys)
    of_records = [kind for kind, _ in kinds.most_common() if kind != "text"]
    kind = of_records[0] if of_records else "text"
    keys = [key for key in folder.keys if kind_of(key) == kind]
    if kind == "text":
        return _text(path, folder.root, keys, task)
    records = sample_records(folder.root, keys[0], kind, _RECORDS)
    if not records:
        raise KdscaleError(
            f"{keys[0]!r} of {path!r} holds no record that can be read.",
            f"Look whether it is a {kind} file in UTF-8, one object a line or one table.",
        )
    if kind == "csv":
        _check_columns(records[0], path)
    notes = [] if len(kinds) == 1 else [f"Of {path}, only the {len(keys):,} {kind} files are read."]
    found = _of_records({"kind": kind, "path": path}, records, task, notes)
    return replace(found, is_single=len(records) == len(keys) == 1)


def _check_columns(record: dict[str, Any], path: str) -> None:
    """Raise KdscaleError for a table whose one column has other separators in its name."""
    (first, *others) = record
    found = [sign for sign in (";", "\t", "|") if sign in first]
    if found and not others:
        raise KdscaleError(
            f"{path!r} has one column, {first!r}: it seems to be separated by {found[0]!r}.",
            "Write it with commas, with tabs under a name in .tsv, or as JSON lines.",
        )


def _text(path: str, root: str, keys: list[str], task: Task) -> FoundData:
    """Return text files, a document each: those of the commonest ending."""
    endings = Counter(PurePosixPath(key).suffix for key in keys)
    notes, source = [], {"kind": "text", "path": path}
    if len(endings) > 1:
        ending = endings.most_common(1)[0][0]
        keys = [key for key in keys if PurePosixPath(key).suffix == ending]
        if not any(sign in path for sign in "*?"):
            source["path"] = f"{path.rstrip('/')}/**/*{ending}"
        others = ", ".join(sorted(each or "no ending" for each in endings if each != ending))
        notes.append(f"Only the {len(keys):,} files {ending} are read, not those of {others}.")
    contents = [read_whole(root, key) or "" for key in keys[:_FILES]]
    texts = [
        each.decode("utf-8", "replace") if isinstance(each, bytes) else each for each in contents
    ]
    if task != "sequence-classification":
        return FoundData(source, texts, is_single=len(keys) == 1, notes=notes)
    if len({PurePosixPath(key).parent for key in keys}) < 2:
        raise KdscaleError(
            f"The text files of {path!r} are in one folder, and a file's class is its folder.",
            "Put them into a folder for each class, or give JSONL, CSV or Parquet with a label.",
        )
    return FoundData(source, texts, label="label", notes=notes)


def _of_records(
    source: dict[str, Any], records: list[dict[str, Any]], task: Task, notes: list[str]
) -> FoundData:
    """Return what the records hold: text, and its label; or conversations."""
    strings = _fields_of(records, str)
    named = next((name for name in _TEXTS if name in strings), None)
    chat = None if named else _chat(records)
    if chat is not None and task == "causal-lm":
        texts = [str([record.get(name) for name in chat.values()]) for record in records]
        return FoundData(source, texts, chat=chat, notes=notes)
    label = _label(records, named) if task == "sequence-classification" else None
    free = [name for name in strings if name != label]
    if named is None and not free:
        raise KdscaleError(
            f"No field of {source['path']!r} holds text: it has {', '.join(sorted(records[0]))}.",
            "Give data with a field of text, such as `text`, or of messages, such as `messages`.",
        )
    name = named or max(free, key=lambda each: _size(records, each))
    if name != "text":
        source = source | {"text_field": name}
    texts = [record[name] for record in records if isinstance(record.get(name), str)]
    return FoundData(source, texts, label=label, notes=notes)


def _fields_of(records: Sequence[dict[str, Any]], kind: type) -> list[str]:
    """Return the fields that hold a `kind` in every record, or nothing."""
    names = dict.fromkeys(name for record in records for name in record)
    return [
        name
        for name in names
        if all(isinstance(record.get(name), kind | None) for record in records)
        and any(record.get(name) for record in records)
    ]


def _chat(records: Sequence[dict[str, Any]]) -> dict[str, Any] | None:
    """Return what `data.chat` is for conversations; None for other records."""
    lists, strings = _fields_of(records, list), _fields_of(records, str)
    for name in _TALKS:
        if name in lists:
            return {"field": name}
    for asked, answered in _ASKED:
        if {asked, answered} <= {*lists, *strings}:
            return {"prompt": asked, "completion": answered}
    return None


def _label(records: Sequence[dict[str, Any]], text: str | None) -> str:
    """Return the field of the classes: of a usual name, else that with the fewest values."""
    fields = [*_fields_of(records, str), *_fields_of(records, int)]
    values = {name: {record.get(name) for record in records} - {None} for name in fields}
    few = [name for name in fields if name != text and 2 <= len(values[name]) <= len(records) / 2]
    named = [name for name in _LABELS if name in few]
    if not few:
        raise KdscaleError(
            f"No field holds the class of a document: there are {', '.join(sorted(records[0]))}.",
            "Give data with a field such as `label`, of two or more classes that return.",
        )
    return named[0] if named else min(few, key=lambda name: len(values[name]))


def _size(records: Sequence[dict[str, Any]], name: str) -> int:
    return sum(len(record.get(name) or "") for record in records)
