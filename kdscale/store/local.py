"""A store in a folder. fsspec's local file system is not used: its conditional create is a race.

An object is written to a temporary file in its own folder, flushed to disk, then renamed (`put`) or
linked (`put_if_absent`) to its name. Both are atomic in POSIX. The folder is flushed after, so that
what has returned survives a power cut. A killed writer leaves a temporary file, which `list` hides
and `leftovers` shows. A folder goes with its last object, as it would in object storage; a writer
that finds its new folder gone makes it again.
"""

import os
import shutil
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from kdscale.errors import StoreError
from kdscale.store.errors import worded
from kdscale.store.store import Entry, Store

_TEMPORARY = (".kdscale-", ".tmp")
_TRIES = 100


@dataclass(frozen=True, repr=False)
class LocalStore(Store):
    """A store whose `url` is an absolute path."""

    def local_path(self, key: str = "") -> Path:
        """See `Store.local_path`."""
        return self._path(key) if key else Path(self.url)

    def get(self, key: str) -> bytes:
        """See `Store.get`."""
        with self._worded("get", key):
            return self._file(key).read_bytes()

    def get_range(self, key: str, start: int, length: int) -> bytes:
        """See `Store.get_range`."""
        return self.get_ranges(key, [(start, length)])[0]

    def get_ranges(self, key: str, spans: Sequence[tuple[int, int]]) -> list[bytes]:
        """See `Store.get_ranges`."""
        for start, length in spans:
            assert min(start, length) >= 0, (start, length)
        with self._worded("get_ranges", key), self._file(key).open("rb", buffering=0) as file:
            _read_ahead(file.fileno(), spans)
            return [self._read(file.fileno(), key, *span) for span in spans]

    def put(self, key: str, data: bytes) -> None:
        """See `Store.put`."""
        path = self._path(key)
        with self._worded("put", key), _written(path, data) as temporary:
            os.replace(temporary, path)

    def put_if_absent(self, key: str, data: bytes) -> bool:
        """See `Store.put_if_absent`."""
        path = self._path(key)
        with self._worded("put_if_absent", key), _written(path, data) as temporary:
            try:
                os.link(temporary, path)
            except FileExistsError:
                return self.get(key) == data
        return True

    def exists(self, key: str) -> bool:
        """See `Store.exists`."""
        with self._worded("get", key):
            return self._path(key).is_file()

    def size(self, key: str) -> int:
        """See `Store.size`."""
        with self._worded("size", key):
            return self._file(key).stat().st_size

    def delete(self, key: str) -> None:
        """See `Store.delete`."""
        path = self._path(key)
        with self._worded("delete", key), suppress(FileNotFoundError, NotADirectoryError):
            path.unlink()
        for folder in path.parents:
            if folder == self.local_path():
                return
            try:
                folder.rmdir()
            except FileNotFoundError:
                continue
            except OSError:
                return  # Something is in it.

    def entries(self, prefix: str = "") -> list[Entry]:
        """See `Store.entries`."""
        return list(filter(None, map(self._entry, self.list(prefix))))

    def leftovers(self) -> list[Entry]:
        """See `Store.leftovers`."""
        return list(filter(None, map(self._entry, filter(_is_temporary, self._keys()))))

    def list(self, prefix: str = "") -> list[str]:
        """See `Store.list`."""
        with self._worded("list"):
            return sorted(key for key in self._keys(prefix) if not _is_temporary(key))

    def put_file(self, key: str, path: Path) -> None:
        """See `Store.put_file`."""
        target = self._path(key)
        with self._worded("put_file", key), _copied(path, target) as temporary:
            os.replace(temporary, target)

    def get_file(self, key: str, path: Path) -> None:
        """See `Store.get_file`."""
        with self._worded("get_file", key), _copied(self._file(key), path) as temporary:
            os.replace(temporary, path)

    def _keys(self, prefix: str = "") -> Iterator[str]:
        """Keys of all files, temporary ones too."""
        for parent, _, names in os.walk(
            self.local_path(prefix.rpartition("/")[0]), onerror=_unless_missing
        ):
            inside = Path(parent).relative_to(self.url)
            for name in names:
                key = (inside / name).as_posix()
                if key.startswith(prefix):
                    yield key

    def _entry(self, key: str) -> Entry | None:
        """None where the file has gone since it was listed."""
        try:
            found = self._path(key).stat()
        except FileNotFoundError:
            return None
        return Entry(key, found.st_size, found.st_mtime)

    def _read(self, descriptor: int, key: str, start: int, length: int) -> bytes:
        """One span of an open file; the kernel hands out at most 2 GiB at a time."""
        pieces = []
        position, end = start, start + length
        while position < end and (piece := os.pread(descriptor, end - position, position)):
            pieces.append(piece)
            position += len(piece)
        if position != end:
            found = position - start
            raise OSError(f"{self}/{key} has {found} bytes from byte {start}, not {length}")
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    @contextmanager
    def _worded(self, verb: str, key: str = "") -> Iterator[None]:
        """Turn errors of the file system into StoreError, except for a key that holds nothing."""
        try:
            yield
        except FileNotFoundError:
            raise
        except OSError as error:
            if isinstance(error, StoreError):
                raise
            raise worded(error, verb, f"{self.url}/{key}".rstrip("/")) from error

    def _path(self, key: str) -> Path:
        return Path(self._join(key))

    def _file(self, key: str) -> Path:
        """Return the path of an object; FileNotFoundError where there is none, or a folder."""
        path = self._path(key)
        if not path.is_file():
            raise FileNotFoundError(f"{self}/{key} does not exist")
        return path


@contextmanager
def temporary_beside(path: Path) -> Iterator[Path]:
    """Yield a new temporary file in the folder of `path`, which is made; it is removed after."""
    prefix, suffix = _TEMPORARY
    temporary = path.parent / f"{prefix}{uuid.uuid4().hex}{suffix}"
    _make(temporary)
    try:
        yield temporary
    finally:
        temporary.unlink(missing_ok=True)


def _make(path: Path) -> None:
    """Make an empty file and its folders, however often another process removes them as empty."""
    for _ in range(_TRIES):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch(exist_ok=False)
        except FileNotFoundError:
            continue
        except FileExistsError:
            if path.parent.is_file():
                raise
        else:
            return
    raise OSError(f"{path.parent} is removed again and again")


@contextmanager
def _written(path: Path, data: bytes) -> Iterator[Path]:
    """Write `data` to disk in a temporary file beside `path`, which the body renames."""
    with temporary_beside(path) as temporary:
        temporary.write_bytes(data)
        _flush(temporary)
        yield temporary
        _flush_folder(path)


@contextmanager
def _copied(source: Path, target: Path) -> Iterator[Path]:
    """Like `_written`, with the bytes of the file `source`."""
    with temporary_beside(target) as temporary:
        shutil.copyfile(source, temporary)
        _flush(temporary)
        yield temporary
        _flush_folder(target)


def _unless_missing(error: OSError) -> None:
    """Ignore a folder that is gone since it was listed, or is a file: it holds no keys.

    One that may not be read is not an empty one.
    """
    if not isinstance(error, FileNotFoundError | NotADirectoryError):
        raise error


def _flush_folder(path: Path) -> None:
    """Flush the folder of `path`. It may be gone: another process deleted the object already."""
    with suppress(FileNotFoundError):
        _flush(path.parent)


def _flush(path: Path) -> None:
    """Flush a file or a folder to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _read_ahead(descriptor: int, spans: Sequence[tuple[int, int]]) -> None:
    """Tell the kernel of all spans, so that it fetches them from the disk side by side."""
    if len(spans) > 1 and hasattr(os, "posix_fadvise"):
        for start, length in spans:
            os.posix_fadvise(descriptor, start, length, os.POSIX_FADV_WILLNEED)


def _is_temporary(key: str) -> bool:
    prefix, suffix = _TEMPORARY
    name = key.rpartition("/")[2]
    return name.startswith(prefix) and name.endswith(suffix)
