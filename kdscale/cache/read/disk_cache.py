"""Decoded chunks on a local disk: shared by the processes of a host, and there after a restart.

A chunk's file is written aside and renamed, so no reader sees half of one, and its digest is
compared the first time a process opens it. That makes the folder safe to lose, to damage and to
share, and flushing needless: what a power cut leaves broken is found, deleted and fetched again.

The folder is kept within its size by the modification times, which every use renews, least recent
first. A file that others have mapped may be deleted: they keep it until they let go. The bytes in
use are counted in a file under flock, which the kernel releases with its process; the count is
only ever too high after a kill, and a sweep over the folder sets it right, when it says that the
folder is full and once in the life of each process. There is no shared memory and no daemon.

    chunks/<key>.blk   chunks/<random>.tmp (being written)   locks/<number>   used
"""

import fcntl
import json
import logging
import os
import struct
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import xxhash

from kdscale.cache.format.row_records import FixedRows, row_type, view_rows

log = logging.getLogger(__name__)

# A full disk is tried again after this time.
_PAUSE_SECONDS = 300.0
# How old a temporary file is when its writer must be dead.
_GRACE_SECONDS = 3600.0
# How long to wait for a process that fetches the same chunk, or sweeps. It may be stopped.
_LOCK_SECONDS = 30.0
# Locks are few files for all chunks: two chunks that share one only wait for each other.
_LOCKS = 1024
# A sweep frees this share of the folder, so that the next one is far away.
_SWEPT_SHARE = 16
_COUNT = struct.Struct("<Q")
_MAGIC = b"KDSBLK\x00\x03"
_HEAD = struct.Struct("<8sQQ")
_DIGEST_END = 16
_ALIGNMENT = 64


@dataclass(frozen=True)
class MappedRows(FixedRows):
    """Rows that are read-only views of a mapped file: the kernel can drop their memory."""


class DiskCache:
    """Chunks by key in `folder`, at most `max_bytes` of them.

    Usable by many threads and processes, picklable and safe under fork. No trouble with the
    disk is ever raised: a chunk that cannot be read is a miss, one that cannot be written is
    not kept, and a warning says so once.
    """

    def __init__(self, folder: Path, max_bytes: int) -> None:
        self._folder = folder
        self._max_bytes = max_bytes
        # Inodes of the files that this process has verified.
        self._verified: dict[str, int] = {}
        self._has_swept = False
        self._has_warned = False
        self._paused_until = 0.0

    def __reduce__(self) -> tuple[Any, ...]:
        return DiskCache, (self._folder, self._max_bytes)

    @property
    def is_writing(self) -> bool:
        """False for some minutes after a write failed."""
        return time.monotonic() >= self._paused_until

    def is_beside(self, path: Path) -> bool:
        """Return whether `path` lies on the same disk."""
        nearest = next(
            folder for folder in (self._folder, *self._folder.parents) if folder.exists()
        )
        try:
            return path.stat().st_dev == nearest.stat().st_dev
        except OSError:
            return False

    def get(self, key: str) -> MappedRows | None:
        """Return the chunk under `key`, or None. Its arrays stay valid when the file is deleted."""
        path = self._path(key)
        try:
            inode = path.stat().st_ino
            rows = map_chunk(path, key, verify=self._verified.get(key) != inode)
        except OSError:
            return None
        except (ValueError, KeyError, TypeError) as error:
            self._drop(path, error)
            return None
        self._verified[key] = inode
        _touch(path)
        return rows

    def put(self, key: str, rows: FixedRows) -> None:
        """Keep a chunk under `key`, which must name its content for ever: a digest."""
        if not self.is_writing:
            return
        try:
            self._write(key, pack_chunk(key, rows))
        except OSError as error:
            self._paused_until = time.monotonic() + _PAUSE_SECONDS
            self._warn(f"cannot be written ({error}); chunks are read from the store meanwhile")

    @contextmanager
    def exclusive(self, key: str) -> Iterator[None]:
        """Hold the right to fetch the chunk: one thread of all processes of the host at a time.

        It is a courtesy that saves downloads, not a guard: after a while, or where the disk does
        not work, the body runs without it.
        """
        number = xxhash.xxh3_64_intdigest(key.encode()) % _LOCKS
        lock = self._folder / "locks" / f"{number:03x}"
        descriptor = _open_lock(lock) if self.is_writing else None
        if descriptor is None:
            yield
            return
        with _locked(descriptor):
            yield

    def _write(self, key: str, pieces: list[bytes | memoryview]) -> None:
        size = sum(len(piece) for piece in pieces)
        if size > self._max_bytes:
            return
        temporary = self._folder / "chunks" / f"{uuid.uuid4().hex}.tmp"
        temporary.parent.mkdir(parents=True, exist_ok=True)
        try:
            with self._counting() as count:
                if count is None:
                    return
                self._reserve(count, temporary, size)
            with temporary.open("r+b") as file:
                for piece in pieces:
                    file.write(piece)
                inode = os.fstat(file.fileno()).st_ino
            _touch(temporary)
            # Not while another process sweeps: it could miss the file under both its names.
            with self._counting() as count:
                if count is not None:
                    os.replace(temporary, self._path(key))
                    self._verified[key] = inode
        finally:
            temporary.unlink(missing_ok=True)

    @contextmanager
    def _counting(self) -> Iterator[int | None]:
        """Yield the open file of the count, locked; None where another process keeps the lock."""
        descriptor = os.open(self._folder / "used", os.O_RDWR | os.O_CREAT, 0o666)
        with _locked(descriptor) as is_ours:
            yield descriptor if is_ours else None

    def _reserve(self, count: int, temporary: Path, size: int) -> None:
        """Make room for `size` bytes and count them.

        The temporary file has its final size at once, so that a sweep sees it whole.
        """
        used = _read_count(count)
        if used is None or used + size > self._max_bytes or not self._has_swept:
            used = self._sweep(size)
            self._has_swept = True
        with temporary.open("xb") as file:
            file.truncate(size)
        os.pwrite(count, _COUNT.pack(used + size), 0)

    def _sweep(self, size: int) -> int:
        """Make room for `size` bytes and remove what killed writers left. The bytes then in use."""
        used, files = 0, []
        oldest = time.time() - _GRACE_SECONDS
        with os.scandir(self._folder / "chunks") as entries:
            for entry in entries:
                try:
                    found = entry.stat(follow_symlinks=False)
                except FileNotFoundError:  # Deleted since it was listed.
                    continue
                if entry.name.endswith(".tmp") and found.st_mtime < oldest:
                    Path(entry.path).unlink(missing_ok=True)
                    continue
                used += found.st_size
                if entry.name.endswith(".blk"):
                    files.append((found.st_mtime_ns, found.st_size, entry.path))
        if used + size <= self._max_bytes:
            return used
        target = self._max_bytes - self._max_bytes // _SWEPT_SHARE - size
        for _, freed, name in sorted(files):
            if used <= target:
                break
            Path(name).unlink(missing_ok=True)
            used -= freed
        return used

    def _path(self, key: str) -> Path:
        assert key.replace("-", "").isalnum(), key
        return self._folder / "chunks" / f"{key}.blk"

    def _drop(self, path: Path, problem: Exception) -> None:
        log.warning("%s %s; it is deleted and the chunk fetched again.", path, problem)
        try:
            path.unlink(missing_ok=True)
        except OSError as error:
            self._warn(f"cannot be cleaned ({error})")

    def _warn(self, problem: str) -> None:
        if not self._has_warned:
            self._has_warned = True
            log.warning("The disk cache %s %s.", self._folder, problem)


def _touch(path: Path) -> None:
    """Set the modification time, finer than the kernel's own clock tick."""
    now = time.time_ns()
    # Evicted by another process in this moment, or a read-only disk: it can be read all the same.
    with suppress(OSError):
        os.utime(path, ns=(now, now))


def _read_count(descriptor: int) -> int | None:
    data = os.pread(descriptor, _COUNT.size, 0)
    return int(_COUNT.unpack(data)[0]) if len(data) == _COUNT.size else None


def _open_lock(path: Path) -> int | None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        return os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    except OSError:
        return None


@contextmanager
def _locked(descriptor: int) -> Iterator[bool]:
    """Return whether the open lock file is ours alone. Closes it."""
    try:
        yield _acquire(descriptor)
    finally:
        # Not by closing alone: a child forked meanwhile has a copy that would keep the lock.
        with suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_UN)
        os.close(descriptor)


def _acquire(descriptor: int) -> bool:
    deadline = time.monotonic() + _LOCK_SECONDS
    delay = 0.001
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            if time.monotonic() >= deadline:
                return False
        except OSError:  # A file system without locks.
            return False
        time.sleep(delay)
        delay = min(1.5 * delay, 0.02)


def pack_chunk(key: str, chunk: FixedRows) -> list[bytes | memoryview]:
    """Return the file of `chunk`, in pieces to be written one after the other.

    Rows are not copied.
    """
    shape = [len(chunk), *chunk.payload.shape[1:]]
    labelled = chunk.rows.labels is not None
    description = json.dumps({"key": key, "shape": shape, "labels": labelled}).encode()
    length = struct.pack("<Q", len(description))
    padded = description + bytes(-(_HEAD.size + len(description)) % _ALIGNMENT)
    records = chunk.records.view(np.uint8).data
    digest = xxhash.xxh3_64(length + padded)
    digest.update(records)
    return [_MAGIC + struct.pack("<Q", digest.intdigest()) + length + padded, records]


def map_chunk(path: Path, key: str, *, verify: bool) -> MappedRows:
    """Map the chunk in the file `path`, without a copy.

    ValueError where it is not the whole chunk of `key`. `verify` reads everything and compares
    the digest; without it only the description is read, which is right for a file verified
    before.
    """
    # Python's own mmap keeps a descriptor open for each mapping; thousands of chunks are mapped.
    with pa.memory_map(str(path)) as file:
        data = memoryview(file.read_buffer())
    if len(data) < _HEAD.size:
        raise ValueError(f"has {len(data)} bytes, which is no chunk")
    magic, digest, description_bytes = _HEAD.unpack_from(data)
    if magic != _MAGIC:
        raise ValueError(f"starts with {magic!r}, not {_MAGIC!r}")
    if verify and (found := xxhash.xxh3_64_intdigest(data[_DIGEST_END:])) != digest:
        raise ValueError(f"has digest {found:016x}, not {digest:016x}")
    end = _HEAD.size + description_bytes
    description = json.loads(bytes(data[_HEAD.size : end]))
    if description["key"] != key:
        raise ValueError(f"is of chunk {description['key']}, not {key}")
    count, seq_len, bytes_per_position = description["shape"]
    kind = row_type(seq_len, bytes_per_position, description["labels"])
    width = np.dtype((np.void, kind.itemsize))
    rows = view_rows(np.frombuffer(data, width, count, end + -end % _ALIGNMENT), kind)
    return MappedRows(rows.rows, rows.payload, rows.entropy, rows.nll, rows.records)
