"""A store in a folder. fsspec's local file system is not used: its conditional create is a race.

An object is written to a temporary file in its own folder, flushed to disk, then renamed (`put`) or
linked (`put_if_absent`) to its name. Both are atomic in POSIX. The folder is flushed after, so that
what has returned survives a power cut. A killed writer leaves a temporary file, which `list` hides.
"""

import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from kdscale.store.check import check
from kdscale.store.store import Store

_TEMPORARY = (".kdscale-", ".tmp")


@dataclass(frozen=True, repr=False)
class LocalStore(Store):
    """A store whose `url` is an absolute path."""

    def local_path(self, key: str = "") -> Path:
        return self._path(key) if key else Path(self.url)

    def get(self, key: str) -> bytes:
        return self._file(key).read_bytes()

    def get_range(self, key: str, start: int, length: int) -> bytes:
        assert min(start, length) >= 0, (start, length)
        with self._file(key).open("rb") as file:
            file.seek(start)
            data = file.read(length)
        if len(data) != length:
            raise OSError(f"{self}/{key} has {len(data)} bytes from byte {start}, not {length}")
        return data

    def put(self, key: str, data: bytes) -> None:
        path = self._path(key)
        with _written(path, data) as temporary:
            os.replace(temporary, path)

    def put_if_absent(self, key: str, data: bytes) -> bool:
        path = self._path(key)
        try:
            with _written(path, data) as temporary:
                os.link(temporary, path)
        except FileExistsError:
            return self.get(key) == data
        return True

    def exists(self, key: str) -> bool:
        return self._path(key).is_file()

    def size(self, key: str) -> int:
        return self._file(key).stat().st_size

    def delete(self, key: str) -> None:
        self._path(key).unlink(missing_ok=True)

    def list(self, prefix: str = "") -> list[str]:
        folder = self.local_path(prefix.rpartition("/")[0])
        keys = (
            Path(parent, name).relative_to(self.url).as_posix()
            for parent, _, names in os.walk(folder)
            for name in names
            if not _is_temporary(name)
        )
        return sorted(key for key in keys if key.startswith(prefix))

    def put_file(self, key: str, path: Path) -> None:
        target = self._path(key)
        with _copied(path, target) as temporary:
            os.replace(temporary, target)

    def get_file(self, key: str, path: Path) -> None:
        with _copied(self._file(key), path) as temporary:
            os.replace(temporary, path)

    def check(self) -> None:
        check(self)

    def _path(self, key: str) -> Path:
        return Path(self._join(key))

    def _file(self, key: str) -> Path:
        """The path of an object; FileNotFoundError where there is none, or a folder."""
        path = self._path(key)
        if not path.is_file():
            raise FileNotFoundError(f"{self}/{key} does not exist")
        return path


@contextmanager
def temporary_beside(path: Path) -> Iterator[Path]:
    """A name for a temporary file in the folder of `path`, which is made. It is removed after."""
    path.parent.mkdir(parents=True, exist_ok=True)
    prefix, suffix = _TEMPORARY
    temporary = path.parent / f"{prefix}{uuid.uuid4().hex}{suffix}"
    try:
        yield temporary
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def _written(path: Path, data: bytes) -> Iterator[Path]:
    """`data` on disk in a temporary file beside `path`; the body gives it its name."""
    with temporary_beside(path) as temporary:
        temporary.write_bytes(data)
        _flush(temporary)
        yield temporary
        _flush(path.parent)


@contextmanager
def _copied(source: Path, target: Path) -> Iterator[Path]:
    """Like `_written`, with the bytes of the file `source`."""
    with temporary_beside(target) as temporary:
        shutil.copyfile(source, temporary)
        _flush(temporary)
        yield temporary
        _flush(target.parent)


def _flush(path: Path) -> None:
    """Flush a file or a folder to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _is_temporary(name: str) -> bool:
    prefix, suffix = _TEMPORARY
    return name.startswith(prefix) and name.endswith(suffix)
