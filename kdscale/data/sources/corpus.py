"""Inputs of a configured source in a fixed order, found before any is read.

Listing inputs is cheap, so a missing or empty corpus is an error at once, and the listing is part
of the fingerprint of prepared data. `readers` opens the inputs.
"""

import hashlib
import importlib.metadata
import os
import platform
import re
import sysconfig
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

from kdscale.config.data import SourceConfig
from kdscale.data.sources.folders import Unread, describe_unread, find_files, suffixes
from kdscale.data.sources.readers import InputShard, is_saved_dataset, load_hub_dataset
from kdscale.errors import KdscaleError
from kdscale.store import file_at, open_store

ROWS_PER_PIECE = 10_000
_PARALLEL_STATS = 16
_PROSE = re.compile(r".*\.(md|rst)|readme(\.txt)?", re.IGNORECASE)


@dataclass(frozen=True)
class Corpus:
    """Inputs of sources, one source after the other, each in the order of the inputs' names.

    `local` files are on this machine only; `unread` lists the other files beside them.
    """

    sources: tuple[SourceConfig, ...]
    inputs: list[InputShard]
    local: bool
    unread: tuple[Unread, ...] = ()
    """Other files at the places of the sources, where there are some."""

    @property
    def limit(self) -> int | None:
        """Documents to read at most; None for mixtures, whose limits their inputs have."""
        return self.sources[0].limit if len(self.sources) == 1 else None


def find_corpus(*sources: SourceConfig) -> Corpus:
    """Find the inputs of one source, or of several.

    Raises KdscaleError where there is nothing to read.
    """
    found = [_find_inputs(source) for source in sources]
    inputs = [
        replace(shard, source=number) if number else shard
        for number, own in enumerate(found)
        for shard in own.inputs
    ]
    unread = [own.unread for own in found if own.unread is not None and own.unread.counts]
    return Corpus(sources, inputs, any(own.local for own in found), tuple(unread))


class _Inputs(NamedTuple):
    """Inputs of one source."""

    inputs: list[InputShard]
    local: bool = True
    unread: Unread | None = None


def _find_inputs(source: SourceConfig) -> _Inputs:
    """Find the inputs of a source, and the other files beside them."""
    local, unread = True, None
    if source.kind == "python-stdlib":
        inputs = _stdlib_inputs()
    elif source.kind == "python-docs":
        inputs = _docs_inputs()
    elif source.kind == "huggingface":
        inputs = _hub_inputs(source)
    else:
        inputs, local, unread = _file_inputs(source)
    # A kind with one document an input needs no more inputs than the limit.
    if source.limit is not None and source.kind in ("python-stdlib", "python-docs", "text"):
        inputs = inputs[: source.limit]
    return _Inputs(inputs, local, unread)


def corpus_identity(source: SourceConfig) -> dict[str, Any]:
    """Return the values that the documents of a source depend on, without reading them.

    Files: their number, bytes, and a digest of (key, size, and on a local disk the time of change).
    Built-in sources: the interpreter or the installed packages. Hub data sets: the builder's hash,
    which follows the data set's commit; saved ones are files.
    """
    if source.kind == "python-stdlib":
        return {"python": platform.python_version()}
    if source.kind == "python-docs":
        return {"packages": sorted({_release(found) for found in _installed()})}
    if source.kind == "huggingface" and not is_saved_dataset(str(source.path)):
        return {"builder": load_hub_dataset(str(source.path), source.subset, None).hash}
    digest, total = hashlib.sha256(), 0
    if source.kind == "huggingface":
        store = open_store(str(source.path))
        inputs = [InputShard("file", key, store.url, key) for key in sorted(store.list())]
    else:
        inputs = find_corpus(source).inputs
    with ThreadPoolExecutor(_PARALLEL_STATS) as pool:
        for shard, (size, changed) in zip(inputs, pool.map(_stat, inputs), strict=True):
            digest.update(f"{shard.key}\0{size}\0{changed}\0".encode("utf-8", "surrogateescape"))
            total += size
    return {"files": len(inputs), "bytes": total, "sha256": digest.hexdigest()}


def file_digest(path: str) -> str:
    """Return the sha256 of a file at a path or URL. Raises KdscaleError if it is missing."""
    store, name = file_at(path)
    if not store.exists(name):
        raise KdscaleError(f"The file {path!r} is not there.", "Correct its path in the config.")
    return hashlib.sha256(store.get(name)).hexdigest()


def _stat(shard: InputShard) -> tuple[int, int]:
    """Return a file's size, and on a local disk its time of change in nanoseconds."""
    store = open_store(shard.root)
    path = store.local_path(shard.key)
    return store.size(shard.key), path.stat().st_mtime_ns if path else 0


def _stdlib_inputs() -> list[InputShard]:
    """Return an input for each module of the interpreter's standard library."""
    root = sysconfig.get_path("stdlib")
    keys = []
    for folder, folders, names in os.walk(root):
        # Installed packages live inside the library's folder where there is no virtual environment.
        folders[:] = [name for name in folders if name not in ("site-packages", "dist-packages")]
        relative = Path(folder).relative_to(root)
        keys += [(relative / name).as_posix() for name in names if name.endswith(".py")]
    if not keys:
        raise KdscaleError(
            f"This Python has no source files of its standard library in {root!r}.",
            "Use a Python that was not stripped, or another source for data.train.",
        )
    return [InputShard("file", key, root, key) for key in sorted(keys)]


def _installed() -> list[importlib.metadata.Distribution]:
    """Return the packages of this environment, whatever is on the import path."""
    paths = sysconfig.get_paths()
    folders = dict.fromkeys([paths["purelib"], paths["platlib"]])
    return list(importlib.metadata.distributions(path=list(folders)))


def _docs_inputs() -> list[InputShard]:
    """Return an input for each Markdown, reStructuredText file or long description."""
    found: dict[str, InputShard] = {}
    for distribution in _installed():
        package = (distribution.metadata["Name"] or "").lower()
        for file in distribution.files or []:
            is_metadata = file.name == "METADATA"
            if not (is_metadata or _PROSE.fullmatch(file.name)):
                continue
            path = Path(str(file.locate()))
            if not path.is_file():
                continue
            name = f"{package}/{file.as_posix()}"
            reader: Literal["metadata", "file"] = "metadata" if is_metadata else "file"
            # Where two environments are on the path, Python imports from the first.
            found.setdefault(name, InputShard(reader, name, str(path.resolve().parent), path.name))
    if not found:
        raise KdscaleError(
            "No installed package has a long description or a Markdown or reStructuredText file.",
            "Use another source than python-docs.",
        )
    return [found[name] for name in sorted(found)]


def _file_inputs(source: SourceConfig) -> _Inputs:
    """Return an input for each file of a folder, glob or path."""
    path = str(source.path).rstrip("/")
    folder = find_files(path, source.kind)
    if not folder.keys:
        unread = folder.unread
        has = describe_unread(unread.counts, unread.examples) or "no files at all"
        named = "" if source.kind == "text" else f"; names end in {suffixes(source.kind)}"
        raise KdscaleError(
            f"{open_store(path)} holds no {source.kind} files: {has}.",
            "Check the path: a folder, a glob such as 'folder/**/*.txt', a file, or a URL of these"
            f"{named}.",
        )
    reader: Any = "file" if source.kind == "text" else source.kind
    store = open_store(folder.root)
    inputs = [InputShard(reader, key, store.url, key) for key in folder.keys]
    return _Inputs(inputs, store.local_path() is not None, folder.unread)


def _hub_inputs(source: SourceConfig) -> list[InputShard]:
    """Return ranges of rows of a Hugging Face data set, which is downloaded if need be."""
    name = str(source.path)
    count = len(load_hub_dataset(name, source.subset, source.split))
    if source.limit is not None:
        count = min(count, source.limit)
    if count == 0:
        raise KdscaleError(
            f"The split {source.split!r} of the data set {name!r} is empty.",
            "Choose another split of it.",
        )
    whole = InputShard("huggingface", f"{name}/{source.split}", name)
    return [
        replace(whole, start=start, stop=min(start + ROWS_PER_PIECE, count))
        for start in range(0, count, ROWS_PER_PIECE)
    ]


def _release(distribution: importlib.metadata.Distribution) -> str:
    return f"{distribution.metadata['Name']}=={distribution.version}"
